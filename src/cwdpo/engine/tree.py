"""The tree engine: one row a prompt, with all its answers behind it. The image and the prompt are paid for once.

A model treats a row as a tree through transformers' own registries and module hooks. The text decoder runs under an
attention implementation of ours, which is the model's own attention with a mask builder of ours before it. The builder
is handed the model's *own* mask function (causal, sliding window, bidirectional among image tokens or a prefix) and
evaluates it at each token's place in ``[prompt | its own answer]``; a ready-made 4-D mask could not know those. Masks
are built before the decoder's layers and passed to them, so layers that are recomputed in the backward pass see the
same mask; by then the config names the model's own attention again, which is the same. What that mask is, and which
kernel goes with it, is the business of :mod:`cwdpo.engine.attention`.
"""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.attention import FlexMask, SplitMask, additive_mask, block_mask, can_split
from cwdpo.engine.forward import Forward, answer_type, only_where_read
from cwdpo.engine.layout import Cost, TreePlan, in_groups, one_row_a_prompt, tree_costs
from cwdpo.engine.vision import FeatureCache, share_images
from cwdpo.models.parts import bare_model

TreeAttention = Literal["split", "mask", "flex"]

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

    def __init__(self, *, attention: TreeAttention = "split", features: FeatureCache | None = None) -> None:
        """``attention`` is how it is computed where the model's own is sdpa (:mod:`cwdpo.engine.attention`): ``split``
        in layers whose own mask is plainly causal, in others by ``mask``; ``flex`` is ``flex_attention``."""
        self.attention: TreeAttention = attention
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
        contexts = [as_tree(bare, plan, attention=self.attention), only_where_read(bare, layout.read, layout.shape)]
        lookup = self._features.lookup(bare, batch) if self._features else None
        if lookup is not None and "pixel_values" in layout.inputs:
            contexts.append(share_images(bare, batch, range(len(batch["prompts"])), lookup=lookup))
        return self._forward(model, batch, layout, want=want, contexts=contexts)


@dataclass
class _Use:
    """What one forward pass did with its plan."""

    plan: TreePlan
    attention: TreeAttention
    groups: int
    """Query heads that share one head of keys."""

    masks: int = 0
    positions: int = 0

    def count(self, queries: int, keys: int) -> None:
        """Count a mask that the model asked for; an error where it is not for the rows of the plan."""
        length = self.plan.branch.shape[1]
        if (queries, keys) != (length, length):
            raise TreeUnsupportedError(f"it asks for a mask of {queries} x {keys} on rows of {length} tokens")
        self.masks += 1


_current: ContextVar[_Use | None] = ContextVar("cwdpo_tree", default=None)


@contextmanager
def as_tree(bare: PreTrainedModel, plan: TreePlan, *, attention: TreeAttention = "split") -> Iterator[None]:
    """While open, the model's forward pass treats its rows as the plan says; ``attention`` as in :class:`TreeEngine`.

    A ``TreeUnsupportedError`` where the model's attention takes no such mask, or the pass did not use the plan.
    """
    config = bare.config.get_text_config()
    own = config._attn_implementation  # the property has no public name; setting it below has
    if own not in _OURS:
        raise TreeUnsupportedError(
            f"its attention implementation `{own}` takes no tree mask; load the model with "
            "`attn_implementation: sdpa`, `eager` or `flex_attention`, or with FlashAttention for the images alone: "
            "`attn_implementation: {text: sdpa, vision: flash_attention_2}`"
        )
    heads = getattr(config, "num_attention_heads", 1)
    use = _Use(plan, attention, groups=heads // (getattr(config, "num_key_value_heads", None) or heads))
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
    use.count(q_length, kv_length)
    rows, length = use.plan.branch.shape
    row = torch.arange(rows, device=device)[:, None, None, None]
    index = torch.arange(length, device=device)
    query, key = index[None, None, :, None], index[None, None, None, :]
    logical = use.plan.logical
    own = mask_function(row, row.new_zeros(()), logical[:, None, :, None], logical[:, None, None, :])
    return use.plan.allow(own, row, query, key)


_CAUSAL: Callable[..., Any] = causal_mask_function


def _sdpa_mask(
    *,
    dtype: torch.dtype = torch.float32,
    mask_function: Callable[..., Tensor],
    q_length: int,
    kv_length: int,
    device: torch.device | str = "cpu",
    **_: object,
) -> Tensor | SplitMask | FlexMask:
    use = _in_use()
    # transformers hands over this very function where a layer's own mask is causal and nothing else: with a window, or
    # both ways among the tokens of an image, it is another
    if use.attention == "split" and mask_function is _CAUSAL and can_split(torch.device(device), dtype):
        use.count(q_length, kv_length)
        return SplitMask(use.plan, groups=use.groups, dtype=dtype)
    allowed = _mask(q_length, kv_length, mask_function, device)
    return FlexMask(allowed) if use.attention == "flex" else additive_mask(allowed, dtype)


def _eager_mask(*, dtype: torch.dtype = torch.float32, **asked: Any) -> Tensor:
    allowed = _mask(**asked)
    return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, torch.finfo(dtype).min)


def _eager_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The eager attention of the module's own modelling file, where transformers looks for it too."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "sdpa": _sdpa_mask,
    "eager": _eager_mask,
    "flex_attention": lambda **asked: block_mask(_mask(**asked)),
}
for _own, _builder in _BUILDERS.items():
    AttentionInterface.register(_OURS[_own], _eager_attention if _own == "eager" else ALL_ATTENTION_FUNCTIONS[_own])
    AttentionMaskInterface.register(_OURS[_own], _builder)
