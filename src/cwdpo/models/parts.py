"""The parts of a vision-language model: vision tower, projector, language model; and who of them trains."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class PartSize:
    """How many weights one part has, and how many of them train. Tied weights count once."""

    part: str
    """``vision tower``, ``projector``, ``language model`` or ``adapters``."""

    total: int
    trainable: int


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model; a bare model as it is."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def vision_tower(model: nn.Module) -> nn.Module | None:
    """The module that encodes images, or None where transformers finds none. For Qwen-VL it holds the merger too."""
    base = base_model(model)
    tower: nn.Module = base.get_encoder(modality="image")
    # transformers returns the model itself where there is no encoder
    return None if tower is base or tower is base.base_model else tower


def language_model(model: nn.Module) -> nn.Module:
    """The decoder with its token embeddings, without the output head."""
    decoder: nn.Module = base_model(model).get_decoder()
    return decoder


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The vision tower's own weights, by their name in it, without those of its projector.

    Qwen-VL keeps its projector inside the tower, as ``merger`` and, for the deep features, ``deepstack_merger_list``.
    """
    tower = vision_tower(model)
    if tower is None:
        return {}
    return {name: weight for name, weight in tower.named_parameters() if "merger" not in name.split(".", 1)[0]}


def freeze_vision_tower(model: nn.Module) -> int:
    """Stop training the vision tower, but not its projector.

    Returns:
        How many weights were frozen, 0 where the model has no vision tower that transformers can find.
    """
    weights = vision_parameters(model).values()
    for weight in weights:
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in weights)


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Count the weights of every part, for the report of what a run trains; the output head goes with the language
    model. Parts without weights are left out."""
    adapter_prefix = getattr(getattr(model, "base_model", None), "prefix", None) or "lora_"
    vision = {id(weight) for weight in vision_parameters(model).values()}
    language = {id(weight) for weight in language_model(model).parameters()}
    head = base_model(model).get_output_embeddings()
    language |= {id(weight) for weight in head.parameters()} if head is not None else set()
    counts = {part: [0, 0] for part in ("vision tower", "projector", "language model", "adapters")}
    for name, weight in model.named_parameters():
        if any(piece.startswith(adapter_prefix) for piece in name.split(".")):
            part = "adapters"
        elif id(weight) in vision:
            part = "vision tower"
        else:
            part = "language model" if id(weight) in language else "projector"
        counts[part][0] += weight.numel()
        counts[part][1] += weight.numel() if weight.requires_grad else 0
    return [PartSize(part, total, trainable) for part, (total, trainable) in counts.items() if total]
