"""The tree engine: one row a prompt, with all its answers behind it. The image and the prompt are paid for once.

A model treats a row as a tree through transformers' own registries and module hooks. The text decoder runs under an
attention implementation of ours, which is the model's own attention with a mask builder of ours before it. The builder
is handed the model's *own* mask function (causal, sliding window, bidirectional among image tokens or a prefix) and
evaluates it at each token's place in ``[prompt | its own answer]``; a ready-made 4-D mask could not know those. Masks
are built before the decoder's layers and passed to them, so layers that are recomputed in the backward pass see the
same mask; by then the config names the model's own attention again, which is the same.

``flex_attention`` comes in by the same door, as a mask that brings its kernel along (:class:`_BlockMask`): no model
needs to offer it, and a layer that is recomputed meets it again.
"""

import functools
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.forward import Forward, answer_type, only_where_read
from cwdpo.engine.layout import Cost, TreePlan, in_groups, one_row_a_prompt, tree_costs
from cwdpo.engine.vision import FeatureCache, share_images
from cwdpo.models.parts import bare_model

FLEX_FROM = 4096
"""Tokens of a row from which ``flex_attention`` is worth its compiler on a GPU. It skips what causality hides, half of
the attention, which in a 3B model is 6 % of the decoder's work at 1,200 tokens and 18 % at 4,096 (by arithmetic)."""

# transformers refuses a name with "flex_attention" in it for classes that do not offer it, so ours has another
_OURS = {"sdpa": "cwdpo_tree_sdpa", "eager": "cwdpo_tree_eager", "flex_attention": "cwdpo_tree_flex"}
"""The name of our version of each attention implementation that takes any mask. FlashAttention does not."""


class TreeUnsupportedError(Exception):
    """The model cannot run a row as a tree; the message says why."""


class TreeEngine:
    """Log-probs by ``[prompt | answer 1 | ... | answer K]`` rows.

    Exact for decoders whose only tie between tokens is attention. It does not find out by itself whether a model is
    one of those: :class:`cwdpo.engine.checked.CheckedEngine` does, before it is used.
    """

    def __init__(self, *, flex_from: int | None = None, features: FeatureCache | None = None) -> None:
        """Where the model's attention is sdpa, rows of ``flex_from`` tokens or more run by ``flex_attention``."""
        self.flex_from = flex_from
        self.report: dict[str, Any] = {"asked": "tree", "choices": []}
        self._features = features
        self._forward = Forward()

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        return in_groups(batch, lambda part: self._logprobs(model, part, want))

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        return tree_costs(batch)

    def _logprobs(self, model: nn.Module, batch: Batch, want: Collection[Detail]) -> AnswerLogprobs:
        bare = bare_model(model)
        layout, plan = one_row_a_prompt(batch, answer_type=answer_type(bare))
        by_flex = self.flex_from is not None and plan.branch.shape[1] >= self.flex_from
        contexts = [as_tree(bare, plan, by_flex=by_flex), only_where_read(bare, layout.read, layout.shape)]
        lookup = self._features.lookup(bare, batch) if self._features else None
        if lookup is not None and "pixel_values" in layout.inputs:
            contexts.append(share_images(bare, batch, range(len(batch["prompts"])), lookup=lookup))
        return self._forward(model, batch, layout, want=want, contexts=contexts)


@dataclass
class _Use:
    """What one forward pass did with its plan."""

    plan: TreePlan
    by_flex: bool = False
    masks: int = 0
    positions: int = 0


_current: ContextVar[_Use | None] = ContextVar("cwdpo_tree", default=None)


@contextmanager
def as_tree(bare: PreTrainedModel, plan: TreePlan, *, by_flex: bool = False) -> Iterator[None]:
    """While open, the model's forward pass treats its rows as the plan says; ``by_flex`` as in :class:`TreeEngine`.

    A ``TreeUnsupportedError`` where the model's attention takes no such mask, or the pass did not use the plan.
    """
    config = bare.config.get_text_config()
    own = config._attn_implementation  # the property has no public name; setting it below has
    if own not in _OURS:
        raise TreeUnsupportedError(
            f"its attention implementation `{own}` takes no tree mask; load the model with "
            "`attn_implementation: sdpa`, `eager` or `flex_attention`"
        )
    use = _Use(plan, by_flex)
    token = _current.set(use)
    handle = bare.get_decoder().register_forward_pre_hook(_restart_positions, with_kwargs=True)
    _set_attention(bare, config, _OURS[own])
    try:
        yield
    finally:
        _set_attention(bare, config, own)
        handle.remove()
        _current.reset(token)
    if not (use.masks and use.positions):
        raise TreeUnsupportedError(
            f"its forward pass asked for {use.masks} masks and {use.positions} positions where at least one of each "
            "was expected, so it does not build its masks through transformers' interface"
        )


def _set_attention(bare: PreTrainedModel, config: PretrainedConfig, name: str) -> None:
    """Switch the attention of the text decoder. transformers' own way walks over all modules, so it goes the first time
    alone; from then on the configs that it changed are changed alike."""
    changed = _switched.get(bare)
    if changed is not None and all(one._attn_implementation != name for one in changed):
        for one in changed:
            one._attn_implementation = name
        return
    of_all = {id(module.config): module.config for module in bare.modules() if isinstance(module, PreTrainedModel)}
    of_all |= {id(one): one for one in _sub_configs(bare.config)}
    before = {key: one._attn_implementation for key, one in of_all.items()}
    keys = [key for key in bare.config.sub_configs if getattr(bare.config, key, None) is config]
    bare.set_attn_implementation({keys[0]: name} if keys else name)
    _switched[bare] = [one for key, one in of_all.items() if one._attn_implementation != before[key]]


_switched: WeakKeyDictionary[nn.Module, list[PretrainedConfig]] = WeakKeyDictionary()
"""The configs that a switch of each model's attention changes."""


def _sub_configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    for key in config.sub_configs:
        found = getattr(config, key, None)
        if isinstance(found, PretrainedConfig):
            yield found
            yield from _sub_configs(found)


def _in_use() -> _Use:
    use = _current.get()
    assert use is not None
    return use


def _restart_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Each answer's positions go on from its prompt, in whatever form the model counts them."""
    use = _in_use()
    use.positions += 1
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(use.plan.shift.shape[1], device=use.plan.shift.device)[None]
    return args, kwargs | {"position_ids": positions - use.plan.shift.to(positions.device)}


def _mask(
    q_length: int, kv_length: int, mask_function: Callable[..., Tensor], device: torch.device | str = "cpu", **_: object
) -> Tensor:
    """``(rows, 1, length, length)`` True where a query may attend to a key."""
    use = _in_use()
    rows, length = use.plan.branch.shape
    if (q_length, kv_length) != (length, length):
        raise TreeUnsupportedError(f"it asks for a mask of {q_length} x {kv_length} on rows of {length} tokens")
    use.masks += 1
    row = torch.arange(rows, device=device)[:, None, None, None]
    index = torch.arange(length, device=device)
    query, key = index[None, None, :, None], index[None, None, None, :]
    logical = use.plan.logical
    own = mask_function(row, row.new_zeros(()), logical[:, None, :, None], logical[:, None, None, :])
    return use.plan.allow(own, row, query, key)


def _sdpa_mask(*, dtype: torch.dtype = torch.float32, **asked: Any) -> Tensor | BlockMask:
    allowed = _mask(**asked)
    return _BlockMask.of(_blocks(allowed)) if _in_use().by_flex else _bias(allowed, dtype)


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
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


def _eager_mask(*, dtype: torch.dtype = torch.float32, **asked: Any) -> Tensor:
    allowed = _mask(**asked)
    return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, torch.finfo(dtype).min)


def _blocks(allowed: Tensor) -> BlockMask:
    """A block mask that looks a dense one up: models' mask functions need not be compiled, and both are the same."""
    rows, _, queries, keys = allowed.shape

    def look_up(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed[row, 0, query, key]

    return create_block_mask(look_up, rows, None, queries, keys, device=allowed.device)


class _BlockMask(BlockMask):
    """Handed to ``scaled_dot_product_attention`` as its mask, it has ``flex_attention`` run instead."""

    blocks: BlockMask

    @classmethod
    def of(cls, blocks: BlockMask) -> "_BlockMask":
        mask = cls.__new__(cls)
        vars(mask).update(vars(blocks), blocks=blocks)
        return mask

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See "Extending torch" in torch's documentation."""
        if func is not F.scaled_dot_product_attention:
            return NotImplemented
        kwargs = dict(kwargs or {})
        mask, dropout = kwargs.pop("attn_mask"), kwargs.pop("dropout_p", 0.0)
        if dropout or kwargs.pop("is_causal", False):
            raise TreeUnsupportedError("its attention drops at random, which flex_attention cannot")
        return flex_kernel()(*args, block_mask=mask.blocks, **kwargs)


@functools.cache
def flex_kernel() -> Callable[..., Tensor]:
    """``flex_attention``, compiled when it first runs."""
    return torch.compile(flex_attention)


def _eager_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager attention of the module's own modelling file, where transformers looks for it too."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


_BUILDERS = {"sdpa": _sdpa_mask, "eager": _eager_mask, "flex_attention": lambda **asked: _blocks(_mask(**asked))}
for _own, _builder in _BUILDERS.items():
    AttentionInterface.register(_OURS[_own], _eager_attention if _own == "eager" else ALL_ATTENTION_FUNCTIONS[_own])
    AttentionMaskInterface.register(_OURS[_own], _builder)
