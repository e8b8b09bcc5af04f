"""Keep the weights of the readings that a stage may have to leave; an interrupted run finds those it needs."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from cwdpo.probes.files import StageFiles
from cwdpo.records import ProbeLine

_HARDEST_FIRST = ("gentle", "rejected")


def margin(reading: Sequence[ProbeLine]) -> float:
    """Mean lbar of the chosen answers, less that of the hardest negatives there are (gentle, else rejected).

    Without negatives it is the chosen answers' alone. Nats per token.

    Args:
        reading: lines of one reading.
    """
    means = {line["group"]: _level(line) for line in reading}
    negatives = [means[group] for group in _HARDEST_FIRST if group in means]
    return means["chosen"] - negatives[0] if negatives else means["chosen"]


def chosen_level(reading: Sequence[ProbeLine]) -> float:
    """Mean lbar of the chosen answers, nats per token; NaN where it was no number."""
    return next((_level(line) for line in reading if line["group"] == "chosen"), math.nan)


def _level(line: ProbeLine) -> float:
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

    def update(self, step: int, reading: Sequence[ProbeLine]) -> bool:
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

    def update(self, step: int, reading: Sequence[ProbeLine]) -> bool:
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


logger = logging.getLogger(__name__)


class Keeper:
    """Holds the weights of a few readings: the best and the safest one, and what they were at the newest checkpoint."""

    def __init__(self, files: StageFiles, *, tolerance: float, keep_best: bool, may_stop: bool, is_main: bool) -> None:
        """Set up.

        Args:
            files: of the stage.
            tolerance: see :class:`cwdpo.probes.keeping.BestReading`.
            keep_best: whether the stage is to leave its best reading.
            may_stop: whether a finding may end the stage, which then leaves its safest reading.
            is_main: whether this process writes.
        """
        self._files, self._is_main, self._tolerance = files, is_main, tolerance
        self._keep_best, self._may_stop = keep_best, may_stop
        self._best, self._safest = BestReading(tolerance), SafestReading()
        self._at_checkpoint: set[int] = set()

    def to_leave(self, *, stopped: bool) -> int | None:
        """Step of the reading whose model the stage leaves; None for the last one.

        Args:
            stopped: whether a finding ended the stage.
        """
        if stopped:
            return self._safest.step
        return self._best.step if self._keep_best else None

    def update(self, step: int, reading: Sequence[ProbeLine], model: nn.Module) -> None:
        """Take in a new reading, and write the model's weights if they may be wanted."""
        wanted = self._steps()
        self._best.update(step, reading)
        self._safest.update(step, reading)
        if self._steps() != wanted and self._is_main:
            if step in self._steps():
                self._files.save_weights(model, step)
            self._remove_others()

    def checkpointed(self) -> None:
        """A checkpoint was written: no resumed run begins before it."""
        self._at_checkpoint = self._steps()
        if self._is_main:
            self._remove_others()

    def recall(self, lines: Sequence[ProbeLine]) -> None:
        """Find the best and the safest of an interrupted run's readings again."""
        for step, reading in groupby(lines, key=lambda line: line["step"]):
            whole = list(reading)
            self._best.update(step, whole)
            self._safest.update(step, whole)
        self._at_checkpoint = self._steps()
        gone = [step for step in sorted(self._steps()) if not self._files.weights(step).exists()]
        if gone:
            logger.warning("the weights of step %d, which this stage may have to leave, are gone: begun anew", gone[0])
            self._best, self._safest, self._at_checkpoint = BestReading(self._tolerance), SafestReading(), set()

    def restore(self, model: nn.Module, step: int) -> None:
        """Put the weights of a reading back."""
        self._files.restore_weights(model, step)

    def clear(self) -> None:
        """The stage is over: its model is saved elsewhere."""
        if self._is_main:
            self._files.keep_only(set())

    def _steps(self) -> set[int]:
        """Steps whose weights may be wanted."""
        wanted = (self._best.step if self._keep_best else None, self._safest.step if self._may_stop else None)
        return {step for step in wanted if step is not None}

    def _remove_others(self) -> None:
        self._files.keep_only(self._steps() | self._at_checkpoint)
