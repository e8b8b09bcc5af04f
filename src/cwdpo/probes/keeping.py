"""Keep the weights of the readings that a stage may have to leave; an interrupted run finds those it needs."""

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torch import nn

from cwdpo.probes.best import BestReading, SafestReading
from cwdpo.probes.files import StageFiles

logger = logging.getLogger(__name__)


class Keeper:
    """Holds the weights of a few readings: the best and the safest one, and what they were at the newest checkpoint."""

    def __init__(self, files: StageFiles, *, tolerance: float, keep_best: bool, may_stop: bool, is_main: bool) -> None:
        """Set up.

        Args:
            files: of the stage.
            tolerance: see :class:`cwdpo.probes.best.BestReading`.
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

    def update(self, step: int, reading: Sequence[Mapping[str, Any]], model: nn.Module) -> None:
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

    def recall(self, lines: Sequence[Mapping[str, Any]]) -> None:
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
