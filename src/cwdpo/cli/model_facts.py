"""What ``cwdpo check`` tells of a model without loading its weights: sizes, LoRA targets, memory."""

from typing import Any

import torch

from cwdpo.config.recipe import LoraConfig
from cwdpo.data.encode import Encoder
from cwdpo.data.memory import memory_estimate
from cwdpo.models.adapters import lora_targets
from cwdpo.models.loading import load_outline
from cwdpo.models.parts import freeze_vision_tower, part_sizes
from cwdpo.models.processors import load_processor


def encoder_and_facts(
    model: str,
    target_modules: str | list[str],
    *,
    trust_remote_code: bool,
    max_length: int | None = None,
    rank: int | None = None,
) -> tuple[Encoder, dict[str, Any]]:
    """An encoder that knows the model's limit, and the facts that need no rows.

    Args:
        model: a local directory or a hub name.
        target_modules: as ``model.lora.target_modules``.
        trust_remote_code: run Python code that comes with the model.
        max_length: as ``data.max_length``; None for the model's own limit.
        rank: as ``model.lora.r``; None for its default.

    Raises:
        UserError: the model or its processor cannot be used, or LoRA would hit nothing.
    """
    outline = load_outline(model, trust_remote_code=trust_remote_code)
    freeze_vision_tower(outline)
    text = outline.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    processor = load_processor(model, trust_remote_code=trust_remote_code)
    encoder = Encoder(processor, max_length=max_length, model_max_length=limit)
    return encoder, {
        "name_or_path": model,
        "class": type(outline).__name__,
        "dtype": str(outline.config.dtype or torch.float32).removeprefix("torch."),
        "max_length": encoder.limit,
        "parts": {part.part: {"total": part.total, "trainable": part.trainable} for part in part_sizes(outline)},
        "lora": _lora(outline, target_modules, LoraConfig().r if rank is None else rank),
        "shape": {
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "vocabulary_size": text.vocab_size,
        },
    }


def _lora(outline: Any, target_modules: str | list[str], rank: int) -> dict[str, Any]:
    """Which layers adapters go into, and how many weights they add."""
    targets = lora_targets(outline, target_modules)
    layers = dict(outline.named_modules())
    return {
        "r": rank,
        "targets": targets,
        "weights": sum(rank * sum(layers[name].weight.shape) for name in targets),
    }


def memory_of(facts: dict[str, Any], longest: int) -> dict[str, dict[str, int]]:
    """Bytes that one pair of the longest row takes in stage 2, with gradient checkpointing, for LoRA and in full.

    Args:
        facts: from :func:`encoder_and_facts`.
        longest: tokens of the longest prompt with its answer.
    """
    num_parameters = sum(part["total"] for part in facts["parts"].values())
    trained = {
        "lora": (num_parameters + facts["lora"]["weights"], facts["lora"]["weights"]),
        "full": (num_parameters, sum(part["trainable"] for part in facts["parts"].values())),
    }
    result = {}
    for name, (total, trainable) in trained.items():
        estimate = memory_estimate(
            num_parameters=total,
            trainable_parameters=trainable,
            bytes_per_value=getattr(torch, facts["dtype"]).itemsize,
            tokens_per_batch=2 * longest,
            checkpointing=True,
            **facts["shape"],
        )
        result[name] = {**vars(estimate), "total": estimate.total}
    return result
