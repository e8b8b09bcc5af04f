"""The model that a stage starts from, as a recipe describes it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from cwdpo.config.recipe import ModelConfig
from cwdpo.models.adapters import add_lora, load_adapter, quantization_config
from cwdpo.models.loading import load_policy


def load_start(config: ModelConfig, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """Load the policy as a stage finds it.

    Args:
        config: the recipe's ``model`` section.
        checkpoint: what the stage before left (a full model, or adapters on ``config``'s base); None begins anew.
    """
    lora, quantization = config.lora, config.quantization
    own_weights = checkpoint is not None and lora is None
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "freeze_vision": config.freeze_vision,
        "trust_remote_code": config.trust_remote_code,
        "quantization": None if quantization is None else quantization_config(**asdict(quantization)),
    }
    model = load_policy(str(checkpoint) if own_weights else config.name_or_path, **options)
    if lora is None:
        return model
    if checkpoint is not None:
        return load_adapter(model, checkpoint)
    return add_lora(model, **asdict(lora), freeze_vision=config.freeze_vision)
