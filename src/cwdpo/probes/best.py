"""Which reading of a stage had the best model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HARDEST_FIRST = ("gentle", "rejected")


def margin(reading: Sequence[Mapping[str, Any]]) -> float:
    """Mean lbar of the chosen answers, less that of the hardest negatives there are (gentle, else rejected).

    Without negatives it is the chosen answers' alone. Nats per token.

    Args:
        reading: lines of one reading.
    """
    means = {line["group"]: float(line["mean_logprob"]) for line in reading}
    negatives = [means[group] for group in _HARDEST_FIRST if group in means]
    return means["chosen"] - negatives[0] if negatives else means["chosen"]


@dataclass
class BestReading:
    """The reading with the largest :func:`margin` among those that did not pay for it with the chosen answers.

    A reading qualifies while its chosen answers' mean lbar is at most ``tolerance`` below the highest of all readings
    so far: a margin that grows because everything falls, the chosen answers too, is no gain. When a new highest
    disqualifies the best one, the reading that set it takes its place.
    """

    tolerance: float
    """Nats per token."""

    step: int | None = None
    margin: float = float("-inf")
    chosen: float = float("-inf")
    """Mean lbar of the chosen answers at that reading."""

    highest: float = float("-inf")
    """Highest mean lbar of the chosen answers so far."""

    def update(self, step: int, reading: Sequence[Mapping[str, Any]]) -> bool:
        """Take in a new reading; True if it is the best now."""
        chosen = next(float(line["mean_logprob"]) for line in reading if line["group"] == "chosen")
        self.highest = max(self.highest, chosen)
        floor = self.highest - self.tolerance
        grown = margin(reading)
        if chosen < floor or (self.chosen >= floor and grown <= self.margin):
            return False
        self.step, self.margin, self.chosen = step, grown, chosen
        return True
