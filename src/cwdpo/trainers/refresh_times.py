"""When negatives are sampled anew, and the largest share of them that can be needed until then."""

import math
from typing import Any

from transformers import TrainerState

from cwdpo.config.negatives import NegativesConfig
from cwdpo.negatives.mixing import fraction_at
from cwdpo.negatives.refreshes import Refresh
from cwdpo.trainers.staleness import WINDOW, Staleness


class RefreshTimes:
    """Decides from the settings and the run's state alone, so that every rank and every resumed run decides alike."""

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
        """The most that a step can ask for until a refresh made now has a successor.

        Args:
            state: where the run stands.
            epoch_steps: optimiser steps of an epoch, rather too many than too few.
        """
        begin, last = state.global_step, state.max_steps
        lasts = {"epoch": epoch_steps, "auto": last}
        end = min(last, begin + (self._rule if isinstance(self._rule, int) else lasts[self._rule]))
        points = [] if isinstance(self._fraction, int | float) else self._fraction
        between = [share for at, share in points if begin <= at * last <= end]
        return max([self.share(state), fraction_at(self._fraction, end / last), *between])

    def is_due(self, state: TrainerState, latest: Refresh | None, staleness: Staleness) -> bool:
        """Whether there is a refresh before the next step.

        Args:
            state: where the run stands.
            latest: the last refresh, also a failed one; None where there was none.
            staleness: of what that one sampled.
        """
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


def epoch_steps(trainer: Any) -> int:
    """Optimiser steps of an epoch; one too many where the last step's rows are left out."""
    args = trainer.args
    of_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(len(trainer.train_dataset) / int(of_step))
