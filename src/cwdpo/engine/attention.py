"""How the attention of a tree is computed: what a model's layers are given as their mask.

====================  ================================================================================================
an additive mask      for any model: ``(rows, 1, length, length)``, made once and shared by all layers
:class:`SplitMask`    where the model's own mask is causal and nothing else: the prompt by the causal kernel, and each
                      answer as queries against ``[prompt | answer]``; no mask of the square of the length exists,
                      but for a layer whose attention drops at random
:class:`FlexMask`     ``flex_attention``, which skips the blocks that no query looks at; only where it is asked for
====================  ================================================================================================

The last two bring a kernel along: a layer hands its mask to ``scaled_dot_product_attention``, which leaves the work to
it. So no model needs to offer anything, and a layer that is computed again in the backward pass meets the same mask.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from cwdpo.batch import on_device
from cwdpo.engine.layout import TreePlan

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 where a query may attend, else minus infinity.

    ``scaled_dot_product_attention`` makes this of a boolean mask in each layer, and each layer keeps its own for the
    backward pass; made here, all layers share one. Its rows begin at multiples of 16 values, as the kernels of GPUs
    ask: they would copy any other in each layer.
    """
    kind = allowed.device.type
    if torch.is_autocast_enabled(kind):  # which the queries will have
        dtype = torch.get_autocast_dtype(kind)
    *outer, keys = allowed.shape
    aligned = torch.zeros(*outer, -(-keys // 16) * 16, dtype=dtype, device=allowed.device)
    return aligned[..., :keys].masked_fill_(~allowed, -torch.inf)


class _OwnKernel:
    """A mask that ``scaled_dot_product_attention`` leaves its work to (torch's documentation, "Extending torch").

    No such kernel drops at random, so a layer whose attention does is computed with the dense mask.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """``(rows, heads, length, size)`` each; keys and values may have fewer heads."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """``(rows, 1, length, length)``, the same as an additive mask."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return NotImplemented
        return _dispatch(*args, **(kwargs or {}))


def _dispatch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: _OwnKernel,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # seen by the shapes
) -> Tensor:
    if is_causal:
        raise ValueError("its attention asks for a tree's mask and a causal one together")
    if dropout_p:
        mask = attn_mask.dense()
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, scale=scale, enable_gqa=enable_gqa)
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    return attn_mask.attend(query, key, value, scale=scale)


def can_split(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for :class:`SplitMask`; ``dtype`` is the queries' outside of autocast."""
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return device.type == "cpu" or (device.type == "cuda" and varlen_attn is not None and dtype.itemsize == 2)


class SplitMask(_OwnKernel):
    """Causal attention of a tree without a mask of the square of the length. Exact: what is skipped is what is hidden.

    On a CPU each row is two calls of the kernel: its prompt, causal; and its answers against the whole row, with a mask
    of ``(answer tokens, row)``. On a GPU all rows are one call of torch's FlashAttention for sequences of unequal
    lengths, in which each answer is a sequence: as many queries as it has tokens, and the keys of its prompt and of
    itself. That call has not been run on a GPU yet.
    """

    def __init__(self, plan: TreePlan, *, groups: int, dtype: torch.dtype) -> None:
        """``groups`` are the query heads that share one head of keys; ``dtype`` as in :func:`additive_mask`."""
        self._plan, self._groups, self._dtype = plan, groups, dtype

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        if key.shape[1] == query.shape[1] and self._groups > 1:
            # layers repeat keys and values for every query head where there is a mask; kept are the ones themselves
            key, value = (each[:, :: self._groups].contiguous() for each in (key, value))
        if query.is_cuda:
            return self._at_once(query, key, value, scale)
        found: Tensor = _CallByCall.apply(query, key, value, self._calls, scale)  # type: ignore[no-untyped-call]
        return found

    @functools.cached_property
    def _calls(self) -> list["_Call"]:
        """Two of each row: its prompt, and its answers, if any of their tokens stand in it, against all of the row."""
        device, logical = self._plan.branch.device, self._plan.logical
        calls = []
        for row, (prompt, *answers) in enumerate(self._plan.lengths):
            calls.append(_Call(row, slice(0, prompt), slice(0, prompt), None))
            if not answers:
                continue
            index = torch.arange(prompt + sum(answers), device=device)
            query, key = index[prompt:, None], index
            own = logical[row, key] <= logical[row, query]
            allowed = self._plan.allow(own, index.new_full((), row), query, key)
            mask = additive_mask(allowed[None, None], self._dtype)
            calls.append(_Call(row, slice(prompt, len(index)), slice(0, len(index)), mask))
        return calls

    def dense(self) -> Tensor:
        return self._dense

    @functools.cached_property
    def _dense(self) -> Tensor:
        rows, length = self._plan.branch.shape
        device, logical = self._plan.branch.device, self._plan.logical
        row = torch.arange(rows, device=device)[:, None, None, None]
        index = torch.arange(length, device=device)
        own = logical[:, None, None, :] <= logical[:, None, :, None]
        return additive_mask(self._plan.allow(own, row, index[:, None], index), self._dtype)

    def _at_once(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        rows, heads, length, _ = query.shape
        packed = self._packed
        q, k, v = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
        found: Any = varlen_attn(
            q[packed.queries],
            k[packed.keys],
            v[packed.keys],
            *(packed.query_ends, packed.key_ends, packed.most_queries, packed.most_keys),
            scale=scale,
            window_size=(-1, 0),  # causal, where the last query is at the last key
            enable_gqa=key.shape[1] != heads,
        )
        tokens = value.new_zeros(rows * length, heads, value.shape[-1]).index_copy(0, packed.queries, found)
        return tokens.view(rows, length, heads, -1).transpose(1, 2)

    @functools.cached_property
    def _packed(self) -> "_Packed":
        return _Packed(self._plan.lengths, self._plan.branch.shape[1], self._plan.branch.device)


@dataclass(frozen=True)
class _Call:
    """One call of the kernel: queries of one row against keys of it, causal where there is no mask."""

    row: int
    queries: slice
    keys: slice
    mask: Tensor | None

    def of(self, tensor: Tensor, tokens: slice) -> Tensor:
        """``(1, heads, n, size)`` of ``(rows, heads, length, size)``."""
        return tensor[self.row : self.row + 1, :, tokens]


class _CallByCall(torch.autograd.Function):
    """The calls' results in one tensor, which is the one that is kept for the backward pass.

    Calls of ``scaled_dot_product_attention`` that are joined afterwards would each keep their own as well.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Sequence[_Call], scale: float | None
    ) -> Tensor:
        rows, heads, length, _ = query.shape
        # in the order in which layers go on with it
        joined = value.new_zeros(rows, length, heads, value.shape[-1]).transpose(1, 2)
        sums = []
        for call in calls:
            q, k, v = call.of(query, call.queries), call.of(key, call.keys), call.of(value, call.keys)
            found, log_sum = _ATTEND(q, k, v, 0.0, call.mask is None, attn_mask=call.mask, scale=scale)
            call.of(joined, call.queries).copy_(found)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, joined, *sums)
        ctx.calls, ctx.scale = calls, scale
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, joined, *sums = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()  # as the kernel asks
        grads = [torch.zeros_like(each) for each in (query, key, value)]
        for call, log_sum in zip(ctx.calls, sums, strict=True):
            places = (call.queries, call.keys, call.keys)
            inputs = (call.of(each, tokens) for each, tokens in zip((query, key, value), places, strict=True))
            of, found = call.of(grad, call.queries), call.of(joined, call.queries)
            causal = call.mask is None
            parts = _ATTEND_BACKWARD(of, *inputs, found, log_sum, 0.0, causal, attn_mask=call.mask, scale=ctx.scale)
            for whole, part, tokens in zip(grads, parts, places, strict=True):
                call.of(whole, tokens).add_(part)
        return (*grads, None, None)


_ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTEND_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
"""What ``scaled_dot_product_attention`` calls on a CPU. It has no public name that also gives the logarithms of the
sums, without which the backward pass would have to compute everything again."""


class _Packed:
    """The sequences of all rows behind each other: each prompt, and each answer with its prompt before it."""

    def __init__(self, lengths: Sequence[Sequence[int]], length: int, device: torch.device) -> None:
        queries: list[int] = []
        keys: list[int] = []
        sizes = []
        for row, (prompt, *answers) in enumerate(lengths):
            start = row * length
            for before, answer in zip(accumulate((prompt, *answers), initial=0), (prompt, *answers), strict=False):
                own = range(start + before, start + before + answer)
                seen = [*range(start, start + prompt), *own] if before else own
                queries += own
                keys += seen
                sizes.append((len(own), len(seen)))
        self.queries, self.keys = (on_device(each, device) for each in (queries, keys))
        """``(n,)`` which of the ``rows * length`` tokens each is."""
        ends = [[0, *accumulate(each)] for each in zip(*sizes, strict=True)]
        self.query_ends, self.key_ends = (on_device(each, device).int() for each in ends)
        """``(sequences + 1,)`` where each begins, and the last ends."""
        self.most_queries, self.most_keys = (max(each) for each in zip(*sizes, strict=True))


class FlexMask(_OwnKernel, BlockMask):
    """``flex_attention`` by a block mask, which models let pass where they build masks a second time.

    Compiled for a GPU when it first runs; it has no backward pass on a CPU.
    """

    def __init__(self, allowed: Tensor) -> None:
        """``allowed`` is ``(rows, 1, length, length)``, True where a query may attend to a key."""
        self.blocks = block_mask(allowed)
        vars(self).update(vars(self.blocks))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        return flex_kernel()(query, key, value, block_mask=self.blocks, scale=scale)

    def dense(self) -> Tensor:
        raise ValueError("its attention drops at random, which flex_attention cannot: set its attention_dropout to 0")


def block_mask(allowed: Tensor) -> BlockMask:
    """A block mask that looks a dense one up: models' mask functions need not be compiled, and both are the same."""
    rows, _, queries, keys = allowed.shape

    def look_up(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[row, 0, query, key]

    return create_block_mask(look_up, rows, None, queries, keys, device=allowed.device)


@functools.cache
def flex_kernel() -> Callable[..., Tensor]:
    """``flex_attention``, compiled when it first runs."""
    return torch.compile(flex_attention)
