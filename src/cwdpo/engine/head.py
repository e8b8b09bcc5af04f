"""From hidden states to log-probs: only where answers are predicted, a chunk at a time, recomputed going backward.

The logits of a whole batch are the largest tensor of preference training at a real vocabulary. Here at most one chunk
of them exists at a time, and none is kept for the backward pass unless all of them are small.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cwdpo.batch import Detail
from cwdpo.errors import UserError

LogitTransform: TypeAlias = Callable[[Tensor], Tensor]
"""From the head's output to the model's logits in float32."""

_CHUNK_ELEMENTS = 2**25
"""Logits per chunk (128 MB in fp32)."""

_KEEP_ELEMENTS = 2**23
"""Below this many logits (32 MB in fp32) recomputing costs more than keeping them."""

_NO_NUMBERS = (
    "the model's logits are no numbers (NaN): its weights are broken, or it overflows in {dtype}, the type it computes "
    "in. Begin from another checkpoint, or write --model.dtype bfloat16 (or float32)."
)


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

    handle = head.register_forward_pre_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def find_logit_transform(model: nn.Module, captured: HeadInput, head: nn.Module, logits: Tensor) -> LogitTransform:
    """What this model does to its head's output, decided by its own logits of one position.

    The text config alone does not say: Gemma3's multimodal class ignores the soft cap that its language model obeys.

    Args:
        model: the model, whose text config names what may be done.
        captured: from :func:`capture_head_input`.
        head: the output embeddings.
        logits: what the model returned in that pass, for the first captured hidden state.

    Raises:
        UserError: the model's logits are no numbers.
        RuntimeError: the model does something that is not known here.
    """
    (hidden,), (enabled, dtype) = captured.hidden, captured.autocast
    with torch.no_grad():
        theirs = logits.reshape(-1, logits.shape[-1])[0].float().log_softmax(dim=-1)
        if theirs.isnan().any():
            raise UserError(_NO_NUMBERS.format(dtype=str(logits.dtype).removeprefix("torch.")))
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            plain = head(hidden[:1])[0]
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


def configured_transform(model: nn.Module) -> LogitTransform:
    """What the text config says: Cohere's scale, Granite's divisor, Gemma's soft cap (in that order), in float32."""
    unwrapped: Any = model
    config = unwrapped.config.get_text_config()
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
) -> dict[str, Tensor]:
    """Log-probs of the target tokens, and the wanted details.

    Args:
        captured: ``n`` hidden states from :func:`capture_head_input`.
        targets: ``(n,)`` token ids.
        head: the output embeddings.
        transform: from :func:`find_logit_transform`.
        want: details to compute.

    Returns:
        ``(n,)`` tensors by name (``token`` and the wanted ones; ``distribution`` is ``(n, V)``), float32.
    """
    (hidden,) = captured.hidden
    enabled, dtype = captured.autocast

    def read(hidden: Tensor, targets: Tensor) -> dict[str, Tensor]:
        with torch.autocast(hidden.device.type, dtype=dtype, enabled=enabled):
            logits = transform(head(hidden))
        return _read(logits.float(), targets, want)

    vocabulary = _weight(head).shape[0]
    size = max(1, _CHUNK_ELEMENTS // vocabulary)
    recompute = torch.is_grad_enabled() and len(targets) * vocabulary > _KEEP_ELEMENTS
    parts = [
        checkpoint(read, h, t, use_reentrant=False) if recompute else read(h, t)
        for h, t in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _read(logits: Tensor, targets: Tensor, want: Collection[Detail]) -> dict[str, Tensor]:
    normaliser = logits.logsumexp(dim=-1)
    read = {"token": logits.gather(-1, targets[:, None])[:, 0] - normaliser}
    if "uniform" in want:
        read["uniform"] = logits.mean(dim=-1) - normaliser
    if set(want) - {"uniform"}:
        with torch.no_grad():
            read |= _details(logits - normaliser[:, None], targets, want)
    return read


def _details(logprobs: Tensor, targets: Tensor, want: Collection[Detail]) -> dict[str, Tensor]:
    details = {}
    top = logprobs.max(dim=-1)
    if "entropy" in want:
        details["entropy"] = -(logprobs.exp() * logprobs).sum(dim=-1)
    if "confidence" in want:
        details["confidence"] = top.values.exp()
    if "hit" in want:
        details["hit"] = top.indices == targets
    if "distribution" in want:
        details["distribution"] = logprobs
    return details


def _weight(head: nn.Module) -> Tensor:
    weight = head.weight
    assert isinstance(weight, Tensor)
    return weight
