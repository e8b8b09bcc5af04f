"""Every knob of a run, as frozen dataclasses. No torch here, so that ``cwdpo --help`` is instant."""

from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LoraConfig:
    """Low-rank adapters; ``lora: null`` trains all weights."""

    r: int = 16
    """Rank of the adapters."""

    alpha: int = 32
    """Scale; the adapter's update is multiplied by alpha / r."""

    dropout: float = 0.0
    """Dropout inside the adapters. Above 0 the reward of step 0 is no longer exactly 0 in training mode."""

    target_modules: str | list[str] = "language"
    """``language`` (every linear layer of the language model), ``all-linear``, a regular expression or names."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class QuantizationConfig:
    """Load the frozen base in 4 or 8 bits (QLoRA); needs ``lora`` and a GPU."""

    bits: Literal[4, 8] = 4
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    """Quantise the quantisation constants too."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """Which model is trained, and which part of it."""

    name_or_path: str
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataConfig:
    """Which rows are trained on."""

    train: str | list[str]
    """Files or directories of rows; relative paths resolve against the recipe file."""

    eval: str | None = None
    image_root: str | None = None
    """Where relative image paths start, and what they may not leave; by default the data file's own directory."""

    stage1_fraction: float = 0.75
    """Share of the training rows that stage 1 sees; stage 2 sees the others (the paper's 75/25)."""

    max_length: int | None = None
    """Most tokens in prompt and answer together; a longer row stops the run. Null takes the model's own limit."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CoolingConfig:
    """How much easy negatives are held back (the paper's w_c). ``cooling: null`` means plain DPO."""

    floor: float | str = "gentle"
    """l_floor: ``gentle``, ``mean``, ``quantile:0.5`` (each measured once before stage 2) or nats per token."""

    temperature: float = 0.3
    """tau, nats per token. Smaller makes the easy/hard switch sharper."""

    detach: bool = True
    """Treat the weight as a constant in the backward pass."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Stage1Config:
    """Smooth supervised fine-tuning with gentle negatives."""

    objective: Literal["constrained", "smoothed", "plain"] = "constrained"
    """The paper's body (a hinge on the negatives' NLL), its abstract (label-smoothed negatives), or plain SFT."""

    penalty: float = 0.1
    """lambda: weight of the gentle-negative term."""

    ceiling: float = 2.0
    """C, nats per token: the hinge is idle while the gentle negatives' mean NLL is above it (``constrained``)."""

    epsilon: float = 0.1
    """Label smoothing of the gentle negative's cross-entropy (``smoothed``)."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Stage2Config:
    """Cooling-weighted DPO against the model that stage 1 left."""

    beta: float = 0.1
    """Inverse temperature of the implicit reward."""

    loss: Literal["sigmoid"] = "sigmoid"
    cooling: CoolingConfig | None = field(default_factory=CoolingConfig)
    reference: Literal["cached", "live"] = "cached"
    """``cached`` computes the reference once and keeps it on disk; ``live`` runs it beside the policy at every step."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Recipe:
    """A whole run. Leave out a stage to skip it."""

    model: ModelConfig
    data: DataConfig
    stage1: Stage1Config | None = None
    stage2: Stage2Config | None = None
    engine: Literal["auto", "tree", "plain"] = "auto"
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to ``TrainingArguments`` as it is."""

    seed: int = 0
    output_dir: str = "runs/cwdpo"
