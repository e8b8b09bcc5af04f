"""The recipe's ``model`` section: which model is trained, and how much of it."""

from typing import Annotated, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from cwdpo.config.limits import STRICT, limit, not_empty
from cwdpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters; ``lora: null`` trains all weights."""

    r: Annotated[int, limit("lora.r", at_least=1, advice="To train all weights write `lora: null`.")] = 16
    """Rank of the adapters."""

    alpha: Annotated[int, limit("lora.alpha", at_least=1, advice="Try twice lora.r.")] = 32
    """Scale; the adapter's update is multiplied by alpha / r."""

    dropout: Annotated[float, limit("lora.dropout", at_least=0, below=1, advice="Try 0.05.")] = 0.0
    """Dropout inside the adapters. Above 0 the reward of step 0 is no longer exactly 0 in training mode."""

    target_modules: Annotated[str | list[str], not_empty("lora.target_modules", advice="Write language.")] = "language"
    """``language`` (every linear layer of the language model), ``all-linear``, a regular expression or names."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizationConfig:
    """Load the frozen base in 4 or 8 bits (QLoRA); needs ``lora`` and a GPU."""

    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    """Quantise the quantisation constants too."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Which model is trained, and which part of it."""

    name_or_path: Annotated[str, not_empty("model.name_or_path", advice="Write a local directory or a hub name.")]
    """A local directory or a hub name that ``AutoModelForImageTextToText`` loads."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    """``sdpa``, ``eager`` or ``flash_attention_2``; null leaves the choice to transformers."""

    lora: LoraConfig | None = None
    quantization: QuantizationConfig | None = None
    freeze_vision: bool = True
    """Keep the vision tower as it is; the projector and the language model train."""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    @model_validator(mode="after")
    def _quantized_base_needs_adapters(self) -> "ModelConfig":
        if self.quantization is not None and self.lora is None:
            raise ConfigError(
                "model.quantization freezes the base, and without model.lora nothing would train. "
                "Write `lora: {}` beside it, or take quantization out."
            )
        return self
