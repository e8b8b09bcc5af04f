"""Images: encoded once for all answers of a prompt, and without gradient where nothing there trains."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from cwdpo.batch import Batch
from cwdpo.engine.layout import merge_images


@contextmanager
def encode_frozen_without_grad(bare: Any) -> Iterator[None]:
    """While open, the frozen parts of the vision tower run without autograd.

    Frozen weights alone do not stop it: ``enable_input_require_grads``, which adapters with gradient checkpointing
    need, makes the tower's input require a gradient too, and a whole tower is backpropagated through for nothing.
    """
    before: list[bool] = []

    def switch_off(*_: Any) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def switch_back(*_: Any) -> None:
        torch.set_grad_enabled(before.pop())

    handles = []
    for part in _frozen_parts(bare):
        handles.append(part.register_forward_pre_hook(switch_off))
        handles.append(part.register_forward_hook(switch_back, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _frozen_parts(bare: Any) -> list[nn.Module]:
    """The whole tower if nothing in it trains; else, if only Qwen's mergers do, which come last, all but them."""
    tower: nn.Module = bare.get_encoder(modality="image")
    if tower is bare or tower is bare.base_model:  # transformers' answer where there is no tower
        return []
    trainable = {name.split(".", 1)[0] for name, weight in tower.named_parameters() if weight.requires_grad}
    if not trainable:
        return [tower]
    if not all("merger" in name for name in trainable):
        return []
    parts: list[nn.Module] = []
    for name, child in tower.named_children():
        if "merger" not in name:
            parts += list(child) if isinstance(child, nn.ModuleList) else [child]
    return parts


def can_share_images(bare: Any) -> bool:
    """Whether the model takes image features in place of pixels, and says which tokens stand for them."""
    return (
        "mm_encoder_outputs" in inspect.signature(bare.forward).parameters
        and hasattr(bare, "get_image_features")
        and getattr(bare.config, "image_token_id", None) is not None
    )


@dataclass(frozen=True)
class ImageFeatures:
    """What one prompt's images are to the language model, one vector an image token, in reading order."""

    pooled: Tensor
    """``(n, hidden)`` what takes the place of the image tokens."""

    deep: tuple[Tensor, ...] = ()
    """``(n, hidden)`` each: what Qwen3-VL adds at the first layers of its language model."""

    stacked: bool = False
    """Whether the model hands ``pooled`` on as one tensor; else as a list of tensors."""

    listed: tuple[bool, ...] = ()
    """The same of each of ``deep``: whether it is handed on as a list."""

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, ``pooled`` first."""
        return [self.pooled, *self.deep]

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def to(self, device: torch.device | str) -> "ImageFeatures":
        """The same on a device, apart from any graph."""
        pooled, *deep = (tensor.detach().to(device, non_blocking=tensor.is_pinned()) for tensor in self.tensors)
        return replace(self, pooled=pooled, deep=tuple(deep))

    def pinned(self) -> "ImageFeatures":
        """The same in page-locked memory, from which a GPU takes them without waiting."""
        pooled, *deep = (tensor.pin_memory() for tensor in self.tensors)
        return replace(self, pooled=pooled, deep=tuple(deep))


Lookup: TypeAlias = Callable[[Sequence[int], Callable[[int], ImageFeatures]], list[ImageFeatures]]
"""Given prompts that have images and a way to encode one of them, the features of each."""


@dataclass
class _Encoded(ModelOutput):
    """The two fields of a tower's output that the models read."""

    pooler_output: Any = None
    deepstack_features: Any = None


@contextmanager
def share_images(bare: Any, batch: Batch, owners: Sequence[int], *, lookup: Lookup | None = None) -> Iterator[None]:
    """While open, a forward pass encodes the pixels of each prompt once for all its rows, or has them looked up.

    The pixels go through the model's wrappers as ever and are exchanged for features inside, so DDP, FSDP and mixed
    precision do their work. The pass must be given each prompt's ``pixel_values`` once
    (:func:`cwdpo.engine.layout.with_images_once`).

    Args:
        bare: the transformers model.
        batch: prompts with images and without.
        owners: the prompt of each row of the pass.
        lookup: a cache; it has prompts encoded one at a time, so that a prompt's features do not depend, in their last
            bit, on the batch they were first met in.
    """
    prompts = batch["prompts"]
    pictured = [i for i, prompt in enumerate(prompts) if "pixel_values" in prompt]
    places = {i: place for place, i in enumerate(pictured)}

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels = kwargs.pop("pixel_values")
        if lookup is None:
            features = _encode(bare, [prompts[i] for i in pictured], pixels)
        else:
            features = lookup(
                pictured, lambda i: _encode(bare, [prompts[i]], prompts[i]["pixel_values"].to(pixels.dtype))[0]
            )
        rows = [features[places[owner]] for owner in owners if owner in places]
        return args, kwargs | {"mm_encoder_outputs": {"image": _put_together(rows)}}

    handle = bare.register_forward_pre_hook(exchange, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _encode(bare: Any, prompts: Sequence[dict[str, Tensor]], pixels: Tensor) -> list[ImageFeatures]:
    """Features of the images of some prompts, whose ``pixel_values`` together are ``pixels``."""
    accepted = inspect.signature(bare.base_model.get_image_features).parameters
    described = {name: value for name, value in merge_images(prompts).items() if name in accepted}
    features = bare.base_model.get_image_features(**described | {"pixel_values": pixels}, return_dict=True)
    counts = [int((prompt["input_ids"] == bare.config.image_token_id).sum()) for prompt in prompts]
    deep = features.get("deepstack_features") or ()
    pieces = [torch.split(_flat(values), counts) for values in (features.pooler_output, *deep)]
    stacked = isinstance(features.pooler_output, Tensor)
    listed = tuple(isinstance(level, list | tuple) for level in deep)
    return [ImageFeatures(pooled, tuple(levels), stacked, listed) for pooled, *levels in zip(*pieces, strict=True)]


def _flat(values: Any) -> Tensor:
    """``(n, hidden)`` from a tensor with any leading dimensions, or from a list of such tensors."""
    if isinstance(values, Tensor):
        return values.reshape(-1, values.shape[-1])
    return torch.cat([value.reshape(-1, value.shape[-1]) for value in values])


def _put_together(rows: Sequence[ImageFeatures]) -> _Encoded:
    """The features of a pass's rows in the form that the model's own encoder gives."""
    first = rows[0]
    pooled, *deep = (torch.cat(values) for values in zip(*(row.tensors for row in rows), strict=True))
    return _Encoded(
        pooler_output=pooled[None] if first.stacked else [pooled],
        deepstack_features=[[level] if listed else level for level, listed in zip(deep, first.listed, strict=True)],
    )
