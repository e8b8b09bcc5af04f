"""Images: encoded once for all answers of a prompt, and without gradient where nothing there trains."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

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


@contextmanager
def share_images(bare: Any, batch: Batch) -> Iterator[None]:
    """While open, a forward pass over one row an answer encodes the pixels of each prompt once for all its rows.

    The pixels go through the model's wrappers as ever and are exchanged for features inside, so DDP, FSDP and mixed
    precision do their work. The pass must be given each prompt's ``pixel_values`` once
    (:func:`cwdpo.engine.layout.with_images_once`).
    """
    unique = merge_images(batch["prompts"])
    accepted = inspect.signature(bare.base_model.get_image_features).parameters
    counts = [int((prompt["input_ids"] == bare.config.image_token_id).sum()) for prompt in batch["prompts"]]
    owners = batch["prompt_index"].tolist()

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels = {name: value for name, value in unique.items() if name in accepted}
        pixels["pixel_values"] = kwargs.pop("pixel_values")
        features = bare.base_model.get_image_features(**pixels, return_dict=True)
        return args, kwargs | {"mm_encoder_outputs": {"image": _repeat(features, counts, owners)}}

    handle = bare.register_forward_pre_hook(exchange, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _repeat(features: Any, counts: Sequence[int], owners: Sequence[int]) -> Any:
    """Image features of the prompts, as features of the rows.

    Args:
        features: the model's own output, its pooled (and deepstack) features in reading order.
        counts: image tokens of each prompt.
        owners: the prompt of each row.
    """

    def repeat(values: Any) -> Any:
        flat = torch.cat([value.reshape(-1, value.shape[-1]) for value in values])
        pieces = torch.split(flat, list(counts))
        rows = torch.cat([pieces[owner] for owner in owners])
        return rows[None] if isinstance(values, Tensor) else [rows]

    repeated = {"pooler_output": repeat(features.pooler_output)}
    deep = features.get("deepstack_features")
    if deep is not None:
        repeated["deepstack_features"] = [
            repeat(level) if isinstance(level, list | tuple) else repeat([level])[0] for level in deep
        ]
    return type(features)(**repeated)
