"""Whether sampled negatives still teach: their mean cooling weight since they were sampled."""

from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

_NAME = "cwdpo_staleness"
WINDOW = 10
"""Steps that are averaged at the beginning and at the end."""

_STALE = 0.5
"""Share of the first window's weight at which the negatives count as unlearnt."""


class Staleness:
    """Mean w_c of the sampled negatives, step by step since they were sampled; saved with every checkpoint."""

    def __init__(self, weights: list[float] | None = None) -> None:
        self.weights = weights or []
        self._step: list[Tensor] = []

    @classmethod
    def restored(cls, state: TrainerState) -> "Staleness":
        """As a checkpoint has it."""
        saved: Any = state.stateful_callbacks
        return cls(list(saved.get(_NAME, {}).get("weights", [])))

    def save(self, state: TrainerState) -> None:
        """Into the state that the Trainer writes with a checkpoint."""
        saved: Any = state.stateful_callbacks
        saved[_NAME] = {"weights": list(self.weights)}

    def add(self, weights: Tensor) -> None:
        """Remember ``(n,)`` w_c of a micro-batch's sampled negatives."""
        self._step.append(weights.detach().double())

    def end_step(self, accelerator: Any) -> None:
        """Average the step over all ranks, so that all of them decide alike; a step without samples does not count."""
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
