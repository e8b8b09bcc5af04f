"""Logits at the tokens of answers, and their Jacobian as a linear map: pulled back, pushed forward, never built."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from cwdpo.batch import Batch
from cwdpo.engine.head import LogitTransform, capture_head_input, find_logit_transform
from cwdpo.engine.layout import one_row_an_answer

Direction: TypeAlias = Mapping[str, Tensor]
"""A vector in parameter space: one tensor a trainable parameter, by the parameter's name in the model."""


class AnswerLogits(nn.Module):
    """A model as a function from a batch to the logits that predict the batch's answer tokens.

    The rows are laid out as the plain engine lays them out; unlike the engine, it keeps all logits, so use it on small
    batches. J below is the Jacobian of these logits in the trainable parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a bare model or one with adapters, in place."""
        super().__init__()
        self.model = model
        self._transform: LogitTransform | None = None

    def forward(self, batch: Batch) -> Tensor:
        """``(n, V)`` logits of the batch's answer tokens, in the order of ``answer_ids[answer_mask]``."""
        model: Any = self.model
        layout = one_row_an_answer(batch)
        head = model.get_output_embeddings()
        with capture_head_input(head) as captured:
            output = model(**layout.inputs, use_cache=False, logits_to_keep=layout.predicts)
        if self._transform is None:
            self._transform = find_logit_transform(model, captured, head, output.logits)
        (hidden,) = captured.hidden
        return self._transform(head(hidden))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that a training step would change, by name; tied ones once."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def pull_back(self, logits: Tensor, weights: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """``J^T weights``: the parameter direction along which ``sum(weights * logits)`` grows.

        Args:
            logits: ``(n, V)`` from this module, with their graph.
            weights: ``(n, V)``.
            keep: keep the graph for another call.
        """
        parameters = self.trainable()
        found = torch.autograd.grad(
            logits, list(parameters.values()), weights.to(logits.dtype), retain_graph=keep, allow_unused=True
        )
        return {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(parameters.items(), found, strict=True)
        }

    @torch.no_grad()
    def push_forward(self, batch: Batch, direction: Direction) -> tuple[Tensor, Tensor]:
        """Logits and ``J direction``, their rate of change along it, in one forward pass.

        Returns:
            ``(n, V)`` logits and ``(n, V)`` rates.
        """
        forward_mode: Any = forward_ad  # torch leaves its functions without types
        with forward_mode.dual_level():
            dual = {
                f"model.{name}": forward_mode.make_dual(value.detach(), direction[name].to(value.dtype))
                for name, value in self.trainable().items()
            }
            primal, tangent = forward_mode.unpack_dual(torch.func.functional_call(self, dual, (batch,)))
        return primal, torch.zeros_like(primal) if tangent is None else tangent


def inner(one: Direction, other: Direction) -> float:
    """Inner product of two parameter directions, added up in double precision."""
    return sum(float((value.double() * other[name].double()).sum()) for name, value in one.items())


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """Attention by plain matrix products inside: fused kernels have no forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def answer_of_token(batch: Batch) -> Tensor:
    """``(n,)`` which answer each row of the logits belongs to."""
    return batch["answer_mask"].nonzero()[:, 0]
