"""Updates that rounding loses: measured in the first steps of training weights that are kept in 16 bits.

A weight in bfloat16 has 8 significant bits: near 0.02 its neighbours are 0.0001 away, and an update of less than half
of that leaves it where it is. Adam's updates are about as large as the learning rate, so that full fine-tuning with the
small learning rates of preference losses can train next to nothing, while the loss looks as usual.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

_STEPS = 3
"""Steps that are measured: the first whose learning rate is at least half of the highest."""

_SAMPLE = 4096
"""Most values that are looked at in each weight."""

_MOST = 0.5
"""Share of lost updates above which there is a warning."""


class LostUpdates(TrainerCallback):
    """Counts, in the first steps, weights that have a gradient and are the same after the optimizer's step."""

    def __init__(self) -> None:
        self.lost, self.wanted = 0, 0
        """Sampled values that stayed where they were, and those that should have moved."""
        self._steps = 0
        self._before: list[tuple[nn.Parameter, Tensor, Tensor]] = []

    @property
    def share(self) -> float | None:
        """The share of lost updates; None before any was measured, and where all weights have 32 bits."""
        return self.lost / self.wanted if self.wanted else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.lost = self.wanted = self._steps = 0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember samples of the weights, and where they have gradients."""
        self._before = []
        rate = max(group["lr"] for group in kwargs["optimizer"].param_groups)
        if self._steps >= _STEPS or rate <= 0 or rate < args.learning_rate / 2:
            return
        for weight in kwargs["model"].parameters():
            if weight.requires_grad and weight.grad is not None and weight.dtype in (torch.bfloat16, torch.float16):
                self._before.append((weight, sample(weight).clone(), sample(weight.grad) != 0))

    def forget_step(self) -> None:
        """Do not count the step that is going on: it is skipped."""
        self._before = []

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare, and after the last of the measured steps say what was found."""
        if not self._before:
            return
        counts = [
            torch.stack([(wanted & (sample(weight) == before)).sum(), wanted.sum()])
            for weight, before, wanted in self._before
        ]
        lost, wanted_here = torch.stack(counts).sum(dim=0).tolist()  # a GPU is waited for once
        self.lost, self.wanted = self.lost + lost, self.wanted + wanted_here
        dtype = self._before[0][0].dtype
        self._before = []
        self._steps += 1
        share = self.share
        if self._steps == _STEPS and share is not None and share > _MOST and state.is_world_process_zero:
            logger.warning(
                "%.0f %% of the updates of %d steps were lost: the weights are in %s, and at a learning rate of %g "
                "most updates are too small to reach the next number of that type. Keep the weights in float32 and "
                "compute in 16 bits (recipe: `model: {dtype: float32}` and `trainer: {bf16: true}`; Python: load with "
                "dtype=torch.float32, and bf16=True), or train adapters, which are in float32.",
                100 * share,
                _STEPS,
                str(dtype).removeprefix("torch."),
                args.learning_rate,
            )


@torch.no_grad()
def sample(weight: Tensor) -> Tensor:
    """Up to 4,096 values of a weight, or of this process's part of it, evenly spread."""
    local = getattr(weight, "to_local", None)
    flat = (weight if local is None else local()).detach().reshape(-1)
    return flat[:: max(1, -(-len(flat) // _SAMPLE))]
