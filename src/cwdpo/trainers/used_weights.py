"""Weights that some ranks use in a step and others do not: an image's, where a rank has text alone.

DistributedDataParallel waits until every weight has its gradient on every rank. Its own search for unused weights
knows one forward pass a backward pass, and none that is recomputed: with activation checkpointing, or with prompts that
take several passes, ranks stop, or wait forever. So each loss passes through :meth:`UsedWeights.touch`, from where
every weight gets a gradient of zeros; and what no rank has used loses it again before the optimizer's step, which
passes such weights over in one process too (weight decay and momentum would move them).

Where FSDP divides the weights, a stand-in gives all ranks an image (:mod:`cwdpo.engine.stand_in`), and its zeros are
taken away in the same manner after a step in which no row has an image.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from cwdpo.batch import Batch, has_images
from cwdpo.models.parts import bare_model, outside_language


class UsedWeights(TrainerCallback):
    """Gives every weight of a DistributedDataParallel model a gradient, and remembers which have one of their own."""

    def __init__(self) -> None:
        self._weights: list[nn.Parameter] = []
        self._zeros: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._used = torch.zeros(0, dtype=torch.uint8)
        self.has_stand_in = False
        """Whether a stand-in gives an image to batches that have none."""

        self._met_images = False

    def note(self, batch: Batch) -> None:
        """Remember whether rows of the step have images."""
        self._met_images = self._met_images or (torch.is_grad_enabled() and has_images(batch))

    def touch(self, model: nn.Module, loss: Tensor) -> Tensor:
        """The same loss, ``()``, whose backward pass reaches every weight that trains. Other models than those of
        DistributedDataParallel are left alone."""
        if not isinstance(model, DistributedDataParallel) or not torch.is_grad_enabled():
            return loss
        if not self._weights:
            self._follow([weight for weight in model.parameters() if weight.requires_grad])
        zeros = [self._zeros[weight.dtype, weight.device].expand(weight.shape) for weight in self._weights]
        touched: Tensor = _Touch.apply(loss, zeros, *self._weights)  # type: ignore[no-untyped-call]
        return touched

    def on_pre_optimizer_step(self, *_: object, **kwargs: Any) -> None:
        """Take the zeros from weights that no rank has used in the step."""
        if self.has_stand_in:
            bare = bare_model(kwargs["model"])
            met = torch.tensor(int(self._met_images), device=bare.device)
            self._met_images = False
            distributed.all_reduce(met, op=distributed.ReduceOp.MAX)
            if not met:
                for _name, weight in outside_language(bare):
                    weight.grad = None
        if not self._weights:
            return
        used = self._used.to(self._weights[0].device)
        distributed.all_reduce(used, op=distributed.ReduceOp.MAX)
        for weight, is_used in zip(self._weights, used.tolist(), strict=True):
            if not is_used:
                weight.grad = None
        self._used.zero_()

    def _follow(self, weights: list[nn.Parameter]) -> None:
        self._weights = weights
        self._used = torch.zeros(len(weights), dtype=torch.uint8)
        for place, weight in enumerate(weights):
            zero = self._zeros.setdefault((weight.dtype, weight.device), weight.new_zeros(()))
            weight.register_hook(self._note(place, zero.data_ptr()))  # type: ignore[no-untyped-call]

    def _note(self, place: int, zero: int) -> Callable[[Tensor], None]:
        """What a weight's gradient, all of it together, is shown to: it is our zero where nothing else came."""

        def note(gradient: Tensor) -> None:
            if gradient.data_ptr() != zero:
                self._used[place] = 1

        return note


class _Touch(torch.autograd.Function):
    """The identity, with zeros for further inputs on the way back; they take no memory, and no weight is read."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, zeros: Sequence[Tensor], *weights: Tensor) -> Tensor:
        ctx.zeros = zeros
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient, None, *ctx.zeros)
