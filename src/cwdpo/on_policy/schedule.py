"""When negatives are sampled again and how hard they are to be: staleness, refresh times and the curriculum."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerState

from cwdpo.config.limits import Fraction
from cwdpo.config.recipe import NegativesConfig
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.negatives.candidates import Refresh
from cwdpo.negatives.mixing import LevelReading, auto_level, fraction_at
from cwdpo.probes.snapshots import margin
from cwdpo.records import ProbeLine

logger = logging.getLogger(__name__)

_NAME = "cwdpo_staleness"
WINDOW = 10
"""Steps that are averaged at the beginning and at the end."""

_STALE = 0.5
"""Share of the first window's weight at which the negatives count as stale."""


class Staleness:
    """Mean w_c of the sampled negatives, step by step since they were sampled; saved with every checkpoint."""

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights or []
        self._step: list[Tensor] = []

    @classmethod
    def restored(cls, state: TrainerState) -> "Staleness":
        saved: Any = state.stateful_callbacks
        return cls(list(saved.get(_NAME, {}).get("weights", [])))

    def save(self, state: TrainerState) -> None:
        saved: Any = state.stateful_callbacks
        saved[_NAME] = {"weights": list(self.weights)}

    def add(self, weights: Tensor) -> None:
        """Remember ``(n,)`` w_c of a micro-batch's sampled negatives."""
        self._step.append(weights.detach().double())

    def forget_step(self) -> None:
        """Do not count the step that is going on: it is skipped."""
        self._step = []

    def end_step(self, accelerator: Accelerator) -> None:
        """Average the step over all ranks, so that all decide the same; a step without samples does not count."""
        here = torch.cat([torch.zeros(0, dtype=torch.float64, device=accelerator.device), *self._step])
        self._step = []
        total, count = accelerator.reduce(torch.stack([here.sum(), here.new_tensor(len(here))])).tolist()
        if count:
            self.weights.append(total / count)

    def is_stale(self) -> bool:
        """Whether the last steps' weight has fallen to half of the first steps'."""
        if len(self.weights) < 2 * WINDOW:
            return False
        return fmean(self.weights[-WINDOW:]) < _STALE * fmean(self.weights[:WINDOW])


class RefreshTimes:
    """Decides by the settings and the run's state alone, so that every rank and a resumed run decide the same."""

    def __init__(self, settings: NegativesConfig) -> None:
        self._rule, self._fraction = settings.refresh, settings.on_policy_fraction
        self._measures = settings.measures_own
        points = self._fraction
        self.samples = any([points] if isinstance(points, int | float) else [share for _, share in points])
        """Whether any step asks for samples."""

    def share(self, state: TrainerState) -> float:
        """The on-policy fraction of the next step."""
        return fraction_at(self._fraction, state.global_step / state.max_steps)

    def largest_share(self, state: TrainerState, *, epoch_steps: int) -> float:
        """The most that a step can ask for until a refresh made now has a successor; ``epoch_steps`` are the optimiser
        steps of an epoch, rather too many than too few."""
        begin, last = state.global_step, state.max_steps
        lasts = {"epoch": epoch_steps, "auto": last}
        end = min(last, begin + (self._rule if isinstance(self._rule, int) else lasts[self._rule]))
        points = [] if isinstance(self._fraction, int | float) else self._fraction
        between = [share for at, share in points if begin <= at * last <= end]
        return max([self.share(state), fraction_at(self._fraction, end / last), *between])

    def is_due(self, state: TrainerState, latest: Refresh | None, staleness: Staleness) -> bool:
        """Whether there is a refresh before the next step; ``latest`` may be a failed one, or None for none so far."""
        if not (self._measures or self.share(state)):
            return False  # nothing would use them yet
        if latest is None:
            return True
        if self._rule == "epoch":
            return epoch(state) > latest.epoch
        since = state.global_step - latest.step
        if self._rule == "auto":
            if latest.error is not None or not staleness.weights:  # no new sample whose weight could be watched
                return since >= 2 * WINDOW
            return staleness.is_stale()
        return since >= self._rule


def epoch(state: TrainerState) -> int:
    """Epochs that are over, from 0."""
    return int((state.epoch or 0.0) + 1e-6)


def epoch_steps(step_rows: int, num_rows: int) -> int:
    """Optimiser steps of an epoch; one too many where the last step's rows are left out."""
    return math.ceil(num_rows / step_rows)


Readings: TypeAlias = Callable[[], Sequence[ProbeLine]]
"""Gives the stage's probe lines so far (``step``, ``group``, ``mean_logprob``), oldest first, on every rank alike."""


class Curriculum:
    """Says how hard the negatives are to be."""

    def __init__(self, rule: Fraction | str) -> None:
        self.rule = rule
        """``auto``, a level, or points ``[progress, level]``."""
        self._readings: Readings | None = None
        self._tolerance, self._every = 0.0, 1

    def follow(self, readings: Readings, *, tolerance: float = 0.02, every: int = 1) -> None:
        """Let probes drive ``auto``; other rules pass them over.

        Args:
            readings: such as ``lambda: probing.lines`` of a :class:`cwdpo.probes.callback.Probing`.
            tolerance: nats per token that the chosen answers may lose.
            every: steps between readings that count. One in between, such as an error's stop adds, would be there in a
                resumed run and not in another.
        """
        self._readings, self._tolerance, self._every = readings, tolerance, every

    def check(self) -> None:
        """Refuse to train where there is nothing to follow."""
        if self.rule == "auto" and self._readings is None:
            raise ConfigError(
                "negatives.curriculum is auto, which probes drive, but this trainer has none. Run a recipe with "
                "`probes: {every: 10}`, call trainer.on_policy.curriculum.follow(lambda: probing.lines), or write "
                "a schedule such as [[0, 0], [1, 1]].",
                setting="negatives.curriculum",
            )

    def level(self, progress: float) -> float:
        """From 0, the easiest, to 1, the hardest, at this point of the stage."""
        if not isinstance(self.rule, str):
            return fraction_at(self.rule, progress)
        assert self._readings is not None, "check() comes first"
        counted = [line for line in self._readings() if line["step"] % self._every == 0]
        return auto_level(level_readings(counted), tolerance=self._tolerance)


def level_readings(lines: Sequence[ProbeLine]) -> list[LevelReading]:
    """What the curriculum looks at in probe lines, oldest first."""
    found = []
    for _, group in groupby(lines, key=lambda line: line["step"]):
        reading = list(group)
        chosen = next(float(line["mean_logprob"]) for line in reading if line["group"] == "chosen")
        found.append(LevelReading(chosen, margin(reading)))
    return found


def warn_without_choice(rows: Iterable[Row], settings: NegativesConfig, *, samples: bool) -> None:
    """Warn where no prompt has more candidates than places, so that a curriculum has nothing to choose; ``rows`` are
    not all read where an early one answers, and ``samples`` says whether any are drawn."""
    drawn = settings.k if samples else 0
    if any(
        (settings.per_prompt or len(row.rejected)) < len(row.rejected) + drawn and max(len(row.rejected), drawn) > 1
        for row in rows
    ):
        return
    logger.warning(
        "negatives.curriculum has no effect: no prompt has more candidates than it takes (%s, per_prompt is %s). Write "
        "a larger k, a smaller per_prompt, or give rows more negatives.",
        f"k is {settings.k}" if samples else "nothing is sampled",
        "null" if settings.per_prompt is None else settings.per_prompt,
    )
