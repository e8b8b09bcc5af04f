"""Running means over steps, which some preference losses compare a step with. They survive a checkpoint."""

from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from cwdpo.losses import Pairs
from cwdpo.losses.preference import mean_reward, reward_margin
from cwdpo.trainers.callbacks import restored


class RunningMeans(TrainerCallback, ExportableState):
    """The mean reward (BCO's delta) and the mean reward margin (beta-DPO's M_0) of the steps before, both 0 at first.

    A step counts once, with the mean over all pairs of its micro-batches on all ranks, and when it is over: what a step
    is compared with does not depend on how the step is divided.
    """

    def __init__(self, *, beta: float, momentum: float) -> None:
        """``momentum`` is the share of the old mean that a step leaves."""
        self.beta, self.momentum = beta, momentum
        self.reward, self.margin = 0.0, 0.0
        self._sums: Tensor | None = None

    def add(self, pairs: Pairs) -> None:
        """Count pairs of the step that is going on."""
        reward, margin = mean_reward(pairs, beta=self.beta), reward_margin(pairs, beta=self.beta)
        here = torch.stack([reward.sum(), margin.sum(), reward.new_full((), len(reward))])
        self._sums = here if self._sums is None else self._sums + here

    def forget_step(self) -> None:
        """Do not count the step that is going on: it is skipped."""
        self._sums = None

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        before = restored(self, state) or {"reward": 0.0, "margin": 0.0}
        self.reward, self.margin, self._sums = before["reward"], before["margin"], None

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if self._sums is None:  # the step was skipped, by all ranks
            return
        reward, margin, count = reduce(self._sums, "sum").tolist()
        self._sums = None
        self.reward += (1 - self.momentum) * (reward / count - self.reward)
        self.margin += (1 - self.momentum) * (margin / count - self.margin)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"reward": self.reward, "margin": self.margin}}
