"""Running means over steps, which some preference losses compare a step with. They survive a checkpoint."""

import math
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from cwdpo.losses import Pairs
from cwdpo.losses.preference import mean_reward, reward_margin


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

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        saved = state.stateful_callbacks.get(type(self).__name__)  # type: ignore[union-attr]
        before = saved["attributes"] if isinstance(saved, dict) else {"reward": 0.0, "margin": 0.0}
        self.reward, self.margin, self._sums = before["reward"], before["margin"], None

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        assert self._sums is not None, "a step has pairs"
        reward, margin, count = reduce(self._sums, "sum").tolist()
        self._sums = None
        if not math.isfinite(reward + margin):  # of a step that was left out
            return
        self.reward += (1 - self.momentum) * (reward / count - self.reward)
        self.margin += (1 - self.momentum) * (margin / count - self.margin)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"reward": self.reward, "margin": self.margin}}
