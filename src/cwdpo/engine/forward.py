"""One forward pass over rows, and what is read from it: the part that every engine shares.

The head: from hidden states to log-probs where answers are predicted, a chunk at a time, recomputed going backward. The
logits of a whole batch are the largest tensor of preference training at a real vocabulary. Here at most one chunk
of them exists at a time, and none is kept for the backward pass unless all of them are small.

The last decoder layer: keys and values are needed of every token; queries, the product behind the attention and the MLP
only where answers are predicted, because nothing reads what the layer says anywhere else. The gain is about one layer's
share of the decoder: a quarter of 4 layers, a thirty-sixth of 36.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Role, answer_places, on_device
from cwdpo.engine.layout import Layout
from cwdpo.engine.vision import encode_frozen_without_grad
from cwdpo.errors import UserError
from cwdpo.models.parts import bare_model, cast_images, frozen_image_parts, keep_in_eval

LogitTransform: TypeAlias = Callable[[Tensor], Tensor]
"""From the head's output to the model's logits in float32."""

_CHUNK_ELEMENTS = 2**25
"""Logits per chunk (128 MB in fp32)."""

_KEEP_ELEMENTS = 2**23
"""Below this many logits (32 MB in fp32) recomputing costs more than keeping them."""

_ANSWER_TYPE = {"paligemma": 1}
"""``token_type_ids`` of answers by model type. PaliGemma attends in both directions among tokens of type 0, so an
answer that went on with its prompt's type would see its own future; elsewhere an answer goes on as the prompt ends."""


class Forward:
    """Runs rows through models; the first time, it checks that the model's logits are understood."""

    def __init__(self) -> None:
        self._transforms: WeakKeyDictionary[nn.Module, LogitTransform] = WeakKeyDictionary()
        self._frozen: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        layout: Layout,
        *,
        want: Collection[Detail],
        contexts: Sequence[AbstractContextManager[Any]] = (),
    ) -> AnswerLogprobs:
        """Log-probs of the batch's answers, whose rows are laid out; the contexts are open during the pass alone.

        The model's own forward is called, so every wrapper does its work. Frozen image parts leave training mode for
        good, and pixels take the tower's type: whoever asks an engine has both.
        """
        bare = bare_model(model)
        head = bare.get_output_embeddings()
        if bare.training:
            # which parts are frozen is looked up once: a walk over all modules takes longer than a small forward pass
            if bare not in self._frozen:
                self._frozen[bare] = frozen_image_parts(bare)
            keep_in_eval(self._frozen[bare])
        inputs = cast_images(bare, layout.inputs)
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            stack.enter_context(encode_frozen_without_grad(bare))
            captured = stack.enter_context(capture_head_input(head))
            output = model(**inputs, use_cache=False, logits_to_keep=layout.keep)
        if bare not in self._transforms:
            self._transforms[bare] = find_logit_transform(bare, captured, head, output.logits)
        captured.hidden = [layout.in_order(hidden) for hidden in captured.hidden]
        mask, places = batch["answer_mask"], on_device(answer_places(batch), batch["answer_ids"].device)
        targets = batch["answer_ids"].flatten().index_select(0, places)
        chosen = None
        if "chosen_entropy" in want:
            chosen = np.repeat(batch["roles"] == Role.CHOSEN, batch["lengths"])
        read = read_tokens(captured, targets, head, self._transforms[bare], want=want, chosen=chosen)
        # back in their places of an (A, T, ...) tensor of zeros
        zeros = {name: values.new_zeros(mask.numel(), *values.shape[1:]) for name, values in read.items()}
        details = {
            name: zeros[name].index_copy(0, places, values).view(*mask.shape, *values.shape[1:])
            for name, values in read.items()
        }
        return AnswerLogprobs(mask=mask, **details, precision=captured.precision)


def not_numbers(precision: torch.dtype) -> UserError:
    """The error of a model whose logits are not numbers, computed in a precision: for scoring and for generation."""
    what, advice = "its weights are broken", "Take another checkpoint"
    if precision == torch.float16:  # the others reach 1e38, as the weights of every checkpoint do
        what += ", or it overflows in float16"
        advice += (
            ", or compute in bfloat16: in a recipe `model.dtype: bfloat16`, and `trainer: {bf16: true}` in place of "
            "fp16; other commands take the `dtype` in the config.json of the model"
        )
    return UserError(f"the model's logits are not numbers (NaN): {what}. {advice}.")


def answer_type(bare: PreTrainedModel) -> int | None:
    """What answers have in ``token_type_ids``, or None where they go on as the prompt ends."""
    return _ANSWER_TYPE.get(bare.config.model_type)


@dataclass
class HeadInput:
    """What reached the output embeddings in one forward pass, and the conditions it ran under."""

    hidden: list[Tensor] = field(default_factory=list)
    """One ``(n, hidden)`` tensor."""

    autocast: tuple[bool, torch.dtype] = (False, torch.float32)

    @property
    def precision(self) -> torch.dtype:
        """Type of the products: autocast's where it was on, else that of the hidden states."""
        enabled, dtype = self.autocast
        return dtype if enabled else self.hidden[0].dtype


@contextmanager
def capture_head_input(head: nn.Module) -> Iterator[HeadInput]:
    """While open, the head sees only the first hidden state it is given; all of them are kept for :func:`read_tokens`.

    Hooking the head, and not calling the model's body, lets the forward pass go through every wrapper (DDP, FSDP,
    mixed precision) untouched.
    """
    captured = HeadInput()

    def keep(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].reshape(-1, args[0].shape[-1])
        device = hidden.device.type
        captured.hidden.append(hidden)
        captured.autocast = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        return (hidden[:1], *args[1:])  # not detached: DDP looks for used parameters in the graph of the output

    with head.register_forward_pre_hook(keep):
        yield captured


def apply_head(head: nn.Module, hidden: Tensor) -> Tensor:
    """``(n, vocabulary)`` from ``(n, hidden)``, once the model's forward pass has been there.

    FSDP2 keeps the head's weights whole from there to the end of the backward pass. Its hooks on the head are left out:
    they would add up the ranks' gradients after each chunk, and ranks may have different numbers of them.
    """
    if isinstance(head, FSDPModule):
        logits: Tensor = head.forward(hidden)
        return logits
    called: Tensor = head(hidden)
    return called


def find_logit_transform(
    model: PreTrainedModel, captured: HeadInput, head: nn.Module, logits: Tensor
) -> LogitTransform:
    """What this model does to its head's output, decided by its own logits of the first captured hidden state.

    The text config alone does not say: Gemma3's multimodal class ignores the soft cap that its language model obeys.
    Logits that are not numbers are a ``UserError``, a change that is not known here a ``RuntimeError``.
    """
    (hidden,), (enabled, dtype) = captured.hidden, captured.autocast
    with torch.no_grad():
        theirs = logits.reshape(-1, logits.shape[-1])[0].float().log_softmax(dim=-1)
        if theirs.isnan().any():
            raise not_numbers(captured.precision)
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            plain = apply_head(head, hidden[:1])[0]
        gaps = [
            ((transform(plain).log_softmax(dim=-1) - theirs).abs().max().item(), i, transform)
            for i, transform in enumerate((configured_transform(model), torch.Tensor.float))
        ]
    gap, _, transform = min(gaps)
    if not gap <= (1e-4 if captured.precision == torch.float32 else 0.1):
        raise RuntimeError(
            f"the model changes its logits in a way that is not known here (log-probs differ by {gap:.3g} nats). "
            "Known are final_logit_softcapping, logit_scale and logits_scaling of the text config."
        )
    return transform


def configured_transform(model: PreTrainedModel) -> LogitTransform:
    """What the text config says: Cohere's scale, Granite's divisor, Gemma's soft cap (in that order), in float32."""
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        logits = logits.float() if scale == 1.0 else logits.float() * scale
        return cap * torch.tanh(logits / cap) if cap else logits

    return transform


def read_tokens(
    captured: HeadInput,
    targets: Tensor,
    head: nn.Module,
    transform: LogitTransform,
    *,
    want: Collection[Detail],
    chosen: NDArray[np.bool_] | None = None,
) -> dict[str, Tensor]:
    """Of ``(n,)`` target tokens from the ``n`` hidden states captured: ``token`` and the wanted details, by name.

    All are ``(n,)`` in float32, but ``distribution``, which is ``(n, V)``. ``chosen``, ``(n,)``, is True on the tokens
    whose entropy ``chosen_entropy`` asks for.
    """
    (hidden,), (enabled, dtype) = captured.hidden, captured.autocast

    def read(hidden: Tensor, targets: Tensor, chosen: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            logits = transform(apply_head(head, hidden))
        return _read(logits.float(), targets, want, chosen)

    assert isinstance(head.weight, Tensor)
    vocabulary = head.weight.shape[0]
    size = max(1, _CHUNK_ELEMENTS // vocabulary)
    recompute = torch.is_grad_enabled() and len(targets) * vocabulary > _KEEP_ELEMENTS
    hiddens, ids = torch.split(hidden, size), torch.split(targets, size)
    which: Sequence[Tensor | None] = [None] * len(ids)
    if chosen is not None:
        cuts = range(0, max(len(chosen), 1), size)
        which = [on_device(np.flatnonzero(chosen[cut : cut + size]), targets.device) for cut in cuts]
    parts = [
        checkpoint(read, h, t, c, use_reentrant=False) if recompute else read(h, t, c)
        for h, t, c in zip(hiddens, ids, which, strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _read(logits: Tensor, targets: Tensor, want: Collection[Detail], chosen: Tensor | None) -> dict[str, Tensor]:
    normaliser = logits.logsumexp(dim=-1)
    read = {"token": logits.gather(-1, targets[:, None])[:, 0] - normaliser}
    if "uniform" in want:
        read["uniform"] = logits.mean(dim=-1) - normaliser
    if set(want) - {"uniform", "chosen_entropy"}:
        with torch.no_grad():
            read |= _details(logits - normaliser[:, None], targets, want)
    if chosen is not None and "entropy" not in want:
        with torch.no_grad():
            entropy = _entropy(logits[chosen] - normaliser[chosen, None])
            read["entropy"] = torch.zeros_like(normaliser).index_copy(0, chosen, entropy)
    return read


def _entropy(logprobs: Tensor) -> Tensor:
    """``(n,)`` nats, of ``(n, V)`` log-probs."""
    # what cannot be has no share, where 0 times minus infinity would be none; in place, this costs no time
    finite = logprobs.clamp(min=torch.finfo(logprobs.dtype).min)
    return -finite.mul_(logprobs.exp()).sum(dim=-1)


def _details(logprobs: Tensor, targets: Tensor, want: Collection[Detail]) -> dict[str, Tensor]:
    top = cache(lambda: logprobs.max(dim=-1))
    details: dict[Detail, Callable[[], Tensor]] = {
        "entropy": lambda: _entropy(logprobs),
        "collision": lambda: (2 * logprobs).logsumexp(dim=-1),
        "confidence": lambda: top().values.exp(),
        "hit": lambda: top().indices == targets,
        "distribution": lambda: logprobs,
    }
    return {name: compute() for name, compute in details.items() if name in want}


@contextmanager
def only_where_read(bare: PreTrainedModel, index: Tensor, shape: torch.Size) -> Iterator[None]:
    """While open, the last decoder layer's work on single positions is done at some of them, nowhere else.

    ``index`` is ``(n,)`` into the flattened ``(rows, length)`` positions, and ``shape`` these two. A model whose last
    layer is not of the known make is left alone.
    """
    layer = _last_layer(bare)
    # the layer hands its keywords on to its attention
    found = (getattr(layer, name, None) for name in _ATTENTIONS)
    attention = next((module for module in found if isinstance(module, nn.Module)), None)
    if layer is None or attention is None:
        yield
        return
    if not any(isinstance(hook, _Listener) for hook in attention._forward_pre_hooks.values()):
        attention.register_forward_pre_hook(_Listener(layer), with_kwargs=True)
    read = _Read(index, shape)
    with layer.register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs | {_KEYWORD: read}), with_kwargs=True
    ):
        yield


def works_on_single_positions(part: nn.Module) -> bool:
    """Whether all weights of a module, adapters included, are those of linear layers.

    Experts, convolutions and whatever else may look at other positions, or give more than one tensor, hold others.
    """
    return all(isinstance(module, nn.Linear) or not [*module.parameters(recurse=False)] for module in part.modules())


_KEYWORD = "cwdpo_read_at"
"""The keyword by which the layer learns which positions are read. Activation checkpointing keeps a layer's keywords, so
a layer that is computed again in the backward pass knows its own pass, however many there were in between."""


_ATTENTIONS, _IN_ATTENTION, _IN_LAYER = ("self_attn", "cross_attn"), ("q_proj", "o_proj"), ("mlp",)


@dataclass(frozen=True)
class _Read:
    """Positions of a pass whose hidden states are read."""

    index: Tensor
    """``(n,)`` into the flattened ``(rows * length,)`` positions."""

    shape: torch.Size
    """Rows and length."""

    def gather(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``(rows, length, width)`` to ``(n, width)``, as a forward pre-hook."""
        hidden = args[0]
        return (hidden.flatten(0, 1).index_select(0, self.index.to(hidden.device)), *args[1:])

    def scatter(self, output: Tensor) -> Tensor:
        """``(n, width)`` to ``(rows, length, width)`` with zeros elsewhere."""
        whole = output.new_zeros(self.shape.numel(), output.shape[-1])
        return whole.index_copy(0, self.index.to(output.device), output).view(*self.shape, -1)


class _Listener:
    """Takes the keyword where the layer's computation begins, be it the first time or again in the backward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._handles: list[RemovableHandle] = []

    def __call__(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the attention's forward pre-hook: the parts behind it see only what is read, once."""
        for handle in self._handles:  # left by an earlier computation that broke off
            handle.remove()
        self._handles.clear()
        read: _Read | None = kwargs.pop(_KEYWORD, None)
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        if read is not None and isinstance(hidden, Tensor) and hidden.shape[:-1] == read.shape:
            for parent, names in ((attention, _IN_ATTENTION), (self._layer, _IN_LAYER)):
                for name in names:
                    part = getattr(parent, name, None)
                    if isinstance(part, nn.Module) and works_on_single_positions(part):
                        self._handles += _restrict_next_call(part, read)
        return args, kwargs


def _restrict_next_call(part: nn.Module, read: _Read) -> list[RemovableHandle]:
    def finish(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for handle in handles:
            handle.remove()
        return read.scatter(output)

    handles = [part.register_forward_pre_hook(read.gather), part.register_forward_hook(finish)]
    return handles


def _last_layer(bare: PreTrainedModel) -> nn.Module | None:
    layers = getattr(bare.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    layer = layers[-1]
    kinds = {parameter.kind for parameter in inspect.signature(layer.forward).parameters.values()}
    return layer if inspect.Parameter.VAR_KEYWORD in kinds else None
