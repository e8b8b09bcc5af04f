"""Keep the weights of a stage's best reading, such that an interrupted run finds those it needs."""

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from cwdpo.probes.best import BestReading
from cwdpo.probes.files import StageFiles

logger = logging.getLogger(__name__)


class BestKeeper:
    """Holds the weights of two readings at most: the best one, and what was the best at the newest checkpoint."""

    def __init__(self, files: StageFiles, *, tolerance: float, keep: bool, is_main: bool) -> None:
        """Set up.

        Args:
            files: of the stage.
            tolerance: see :class:`cwdpo.probes.best.BestReading`.
            keep: whether weights are kept at all.
            is_main: whether this process writes.
        """
        self._files, self._keep, self._is_main = files, keep, is_main
        self._tolerance = tolerance
        self._best = BestReading(tolerance)
        self._at_checkpoint: int | None = None

    @property
    def step(self) -> int | None:
        """Step of the best reading."""
        return self._best.step

    def update(self, step: int, reading: Sequence[Mapping[str, Any]], model: nn.Module) -> None:
        """Take in a new reading, and write the model's weights if it is the best."""
        if self._best.update(step, reading) and self._keep and self._is_main:
            self._files.save_best(model, step)
            self._remove_others()

    def checkpointed(self) -> None:
        """A checkpoint was written: no resumed run begins before it."""
        self._at_checkpoint = self._best.step
        if self._keep and self._is_main:
            self._remove_others()

    def recall(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Find the best of an interrupted run's readings again."""
        for step, reading in groupby(lines, key=lambda line: line["step"]):
            self._best.update(step, list(reading))
        self._at_checkpoint = self._best.step
        if self._keep and self._best.step is not None and not self._files.best(self._best.step).exists():
            logger.warning("the weights of the best reading, of step %d, are gone; it begins anew", self._best.step)
            self._best, self._at_checkpoint = BestReading(self._tolerance), None

    def restore(self, model: nn.Module) -> None:
        """Put the best reading's weights back."""
        assert self._best.step is not None
        self._files.restore_best(model, self._best.step)

    def clear(self) -> None:
        """The stage is over: its model is saved elsewhere."""
        if self._is_main:
            self._files.keep_only(set())

    def _remove_others(self) -> None:
        self._files.keep_only({step for step in (self._best.step, self._at_checkpoint) if step is not None})
