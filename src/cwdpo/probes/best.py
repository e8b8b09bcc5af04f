"""Which reading of a stage had the best model."""

import math
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
    means = {line["group"]: _level(line) for line in reading}
    negatives = [means[group] for group in _HARDEST_FIRST if group in means]
    return means["chosen"] - negatives[0] if negatives else means["chosen"]


def chosen_level(reading: Sequence[Mapping[str, Any]]) -> float:
    """Mean lbar of the chosen answers, nats per token; NaN where it was no number."""
    return next((_level(line) for line in reading if line["group"] == "chosen"), math.nan)


def _level(line: Mapping[str, Any]) -> float:
    found = line["mean_logprob"]
    return math.nan if found is None else float(found)  # files have null for what was no number


@dataclass
class SafestReading:
    """The reading whose chosen answers were likeliest, the first of them where several were: the last before any harm.

    A stage that was ended because its right answers lose probability is best left as it was when they had most of it.
    """

    step: int | None = None
    chosen: float = float("-inf")
    """Mean lbar of the chosen answers at that reading, nats per token."""

    def update(self, step: int, reading: Sequence[Mapping[str, Any]]) -> bool:
        """Take in a new reading; True if it is the safest now."""
        chosen = chosen_level(reading)
        if not chosen > self.chosen:  # NaN too
            return False
        self.step, self.chosen = step, chosen
        return True


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
        chosen, grown = chosen_level(reading), margin(reading)
        if not (math.isfinite(chosen) and math.isfinite(grown)):
            return False
        self.highest = max(self.highest, chosen)
        floor = self.highest - self.tolerance
        if chosen < floor or (self.chosen >= floor and grown <= self.margin):
            return False
        self.step, self.margin, self.chosen = step, grown, chosen
        return True
