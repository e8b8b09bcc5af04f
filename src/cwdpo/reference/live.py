"""References that run beside the policy: a frozen copy, or the policy itself with the adapter it started from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch
from cwdpo.engine import Engine
from cwdpo.eval_mode import eval_mode


class Reference(Protocol):
    """log pi_ref of every answer in a batch."""

    def totals(self, batch: Batch) -> Tensor:
        """``(A,)`` log pi_ref(y|x), summed over tokens, without gradient."""
        ...


class FrozenCopy:
    """A second model in memory, for full fine-tuning."""

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model, self.engine = model.eval().requires_grad_(False), engine

    @torch.no_grad()
    def logprobs(self, batch: Batch, **details: Any) -> AnswerLogprobs:
        """Everything the engine says of the batch under the frozen model."""
        return self.engine.logprobs(self.model, batch, **details)

    def totals(self, batch: Batch) -> Tensor:
        """``(A,)`` log pi_ref(y|x)."""
        return self.logprobs(batch).total


class StartingAdapter:
    """The policy with its adapter set back to where stage 2 began; the base model is shared, so it costs no memory.

    An adapter that has not been trained yet is switched off instead, which is the same model and cheaper.
    """

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.model, self.engine = model, engine
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._start = {name: p.detach().clone() for name, p in self._trainable.items()}
        self._is_new = all("lora_" in n for n in self._start) and not any(
            value.any() for name, value in self._start.items() if "lora_B" in name
        )

    @torch.no_grad()
    def logprobs(self, batch: Batch, **details: Any) -> AnswerLogprobs:
        """Everything the engine says of the batch under the starting adapter."""
        adapted: Any = self.model
        with eval_mode(self.model), adapted.disable_adapter() if self._is_new else self._set_back():
            return self.engine.logprobs(self.model, batch, **details)

    def totals(self, batch: Batch) -> Tensor:
        """``(A,)`` log pi_ref(y|x)."""
        return self.logprobs(batch).total

    @contextmanager
    def _set_back(self) -> Iterator[None]:
        # The storage is exchanged, not the values: autograd graphs that hold the policy's weights stay valid.
        now = {name: p.data for name, p in self._trainable.items()}
        for name, p in self._trainable.items():
            p.data = self._start[name].to(p.device)
        try:
            yield
        finally:
            for name, p in self._trainable.items():
                p.data = now[name]
