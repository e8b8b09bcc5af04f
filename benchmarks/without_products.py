"""FLOPs of large models on a CPU, by steps whose products are not computed."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten

_SKIPPED = (
    _ATEN.mm,
    _ATEN.addmm,
    _ATEN.addmm_,
    _ATEN.bmm,
    _ATEN.baddbmm,
    _ATEN.convolution,
    _ATEN.convolution_backward,
    _ATEN._scaled_dot_product_flash_attention_for_cpu,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward,
)


def without_products() -> AbstractContextManager[Any]:
    """While open, every operation whose FLOPs are counted gives zeros of the right shape, at once.

    For :func:`cwdpo.bench.counting.count_flops`, whose count is the same and takes a fraction of the time: all other
    numbers mean nothing.
    """
    return _WithoutProducts()  # type: ignore[no-untyped-call]


class _WithoutProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's __init_subclass__
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in _SKIPPED:
            return func(*args, **kwargs)
        if func._overloadpacket is _ATEN.addmm_:
            return args[0]
        if "out" in kwargs:
            return kwargs["out"].zero_()
        shapes = func(*tree_map_only(Tensor, _on_meta, args), **tree_map_only(Tensor, _on_meta, kwargs))
        device = next(value for value in args if isinstance(value, Tensor)).device
        return tree_map_only(Tensor, lambda shape: torch.zeros_like(shape, device=device), shapes)


def _on_meta(value: Tensor) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
