"""The last decoder layer, computed only where answers are predicted: nothing reads what it says anywhere else.

Keys and values are needed of every token; queries, the product behind the attention and the MLP are not. The gain is
about one layer's share of the decoder: a quarter of 4 layers, a thirty-sixth of 36.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_KEYWORD = "cwdpo_read_at"
"""Under this name the layer is told which positions are read. Activation checkpointing keeps a layer's keywords, so a
layer that is computed again in the backward pass knows its own pass, however many there were in between."""

_ATTENTIONS, _IN_ATTENTION, _IN_LAYER = ("self_attn", "cross_attn"), ("q_proj", "o_proj"), ("mlp",)


@dataclass(frozen=True)
class _Read:
    """Positions of a pass whose hidden states are read."""

    index: Tensor
    """``(n,)`` into the flattened ``(rows * length,)`` positions."""

    shape: torch.Size
    """Rows and length."""

    def gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """``(rows, length, width)`` to ``(n, width)``, as a forward pre-hook."""
        hidden = args[0]
        return (hidden.flatten(0, 1).index_select(0, self.index.to(hidden.device)), *args[1:])

    def scatter(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """``(n, width)`` to ``(rows, length, width)`` with zeros elsewhere, as a forward hook."""
        whole = output.new_zeros(self.shape.numel(), output.shape[-1])
        return whole.index_copy(0, self.index.to(output.device), output).view(*self.shape, -1)


@contextmanager
def only_where_read(bare: Any, predicts: Tensor) -> Iterator[None]:
    """While open, the last decoder layer's work on single positions is done where ``predicts`` is True, nowhere else.

    A model whose last layer is not of the known make is left alone.

    Args:
        bare: the transformers model.
        predicts: ``(rows, length)`` True where hidden states are read.
    """
    layer = _last_layer(bare)
    attention = None if layer is None else _attention(layer)
    if layer is None or attention is None:
        yield
        return
    _listen(layer, attention)
    read = _Read(predicts.flatten().nonzero()[:, 0], predicts.shape)

    def tell(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {_KEYWORD: read}

    handle = layer.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _last_layer(bare: Any) -> nn.Module | None:
    layers = getattr(bare.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer = layers[-1]
    kinds = {parameter.kind for parameter in inspect.signature(layer.forward).parameters.values()}
    return layer if inspect.Parameter.VAR_KEYWORD in kinds else None


def _attention(layer: nn.Module) -> nn.Module | None:
    """The attention, to which the layer hands its keywords on."""
    found = (getattr(layer, name, None) for name in _ATTENTIONS)
    return next((module for module in found if isinstance(module, nn.Module)), None)


def works_on_single_positions(part: nn.Module) -> bool:
    """Whether all weights of a module, adapters included, are those of linear layers.

    Experts, convolutions and whatever else may look at other positions, or give more than one tensor, hold others.
    """
    return all(isinstance(module, nn.Linear) or not [*module.parameters(recurse=False)] for module in part.modules())


class _Listener:
    """Takes the keyword where the layer's computation begins, be it the first time or again in the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._handles: list[RemovableHandle] = []

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the attention's forward pre-hook: the parts behind it see only what is read, once."""
        self._forget()
        read: _Read | None = kwargs.pop(_KEYWORD, None)
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if read is not None and isinstance(hidden, Tensor) and hidden.shape[:-1] == read.shape:
            for parent, names in ((attention, _IN_ATTENTION), (self._layer, _IN_LAYER)):
                for name in names:
                    part = getattr(parent, name, None)
                    if isinstance(part, nn.Module) and works_on_single_positions(part):
                        self._handles += _restrict_next_call(part, read)
        return args, kwargs

    def _forget(self) -> None:
        """Drop what an earlier computation left that broke off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _listen(layer: nn.Module, attention: nn.Module) -> None:
    if not any(isinstance(hook, _Listener) for hook in attention._forward_pre_hooks.values()):
        attention.register_forward_pre_hook(_Listener(layer), with_kwargs=True)


def _restrict_next_call(part: nn.Module, read: _Read) -> list[RemovableHandle]:
    def finish(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        for handle in handles:
            handle.remove()
        return read.scatter(module, args, output)

    handles = [part.register_forward_pre_hook(read.gather), part.register_forward_hook(finish)]
    return handles
