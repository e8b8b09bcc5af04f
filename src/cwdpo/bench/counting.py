"""What a step costs: FLOPs, activations kept for the backward pass, peak memory, time."""

import json
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cwdpo.engine import attention as tree_attention

_ATEN = torch.ops.aten

# From the shapes of what goes in. Torch counts CUDA's attention kernels only, and no product that is added in place.
_MISSING: dict[Any, Callable[..., Any]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),  # type: ignore[no-untyped-call]
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(  # type: ignore[no-untyped-call]
        *shapes[:4]
    ),
    _ATEN.addmm_: lambda total, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
}

_BACKWARD_PRODUCTS = 2.5  # five, where there were two forward


def count_flops(step: Callable[[], Any]) -> int:
    """FLOPs of matrix products, convolutions and attention in a step; a multiplication and an addition count as two.

    Attention counts every pair of a query and a key, masked or not, because the dense kernels compute them all; of
    ``flex_attention``, which torch's counter stops, the blocks that it computes.
    """
    with FlopCounterMode(display=False, custom_mapping=_MISSING) as counter, _flex_counted() as by_flex:
        step()
    return int(counter.get_total_flops() + sum(by_flex))


@contextmanager
def _flex_counted() -> Iterator[list[float]]:
    """While open, the tree's ``flex_attention`` gives zeros at once, and what it would have cost is listed."""
    flops: list[float] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, **_: Any) -> Tensor:
        blocks = block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum()
        side, other_side = block_mask.BLOCK_SIZE
        products = 2 * query.shape[1] * (query.shape[-1] + value.shape[-1]) * int(blocks) * side * other_side
        found: Tensor = _CountedFlex.apply(query, key, value, flops, products)  # type: ignore[no-untyped-call]
        return found

    with mock.patch.object(tree_attention, "flex_kernel", return_value=kernel):
        yield flops


class _CountedFlex(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, flops: list[float], products: int) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.flops, ctx.products = flops, products
        flops.append(products)
        return query.new_zeros(*query.shape[:-1], value.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ctx.flops.append(_BACKWARD_PRODUCTS * ctx.products)
        return (*(torch.zeros_like(tensor) for tensor in ctx.saved_tensors), None, None)


@contextmanager
def saved_activations(weights: Callable[[], Iterator[Tensor]]) -> Iterator[Callable[[], int]]:
    """Yields a function that gives the bytes that autograd keeps by then: each storage once, the weights left out."""
    kept: list[weakref.ref[Tensor]] = []

    def pack(tensor: Tensor) -> Tensor:
        alias = tensor.detach()  # a node that kept its own result would keep itself alive
        kept.append(weakref.ref(alias))
        return alias

    def count() -> int:
        own = {tensor.untyped_storage().data_ptr() for tensor in weights()}
        alive = [tensor for tensor in (reference() for reference in kept) if tensor is not None]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
        return sum(size for address, size in storages.items() if address not in own)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield count


def peak_memory(step: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a step holds at its peak beyond what was held before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with _native_stderr_muted(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return int(max(accumulate((change for _, change in changes), initial=0)))


@contextmanager
def _native_stderr_muted() -> Iterator[None]:
    """Torch's profiler writes lines of its own past ``sys.stderr``."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def clock(device: torch.device) -> float:
    """Seconds: the process's own time on a CPU, which other processes do not lengthen; wall time, when its work is
    done, on a GPU."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
