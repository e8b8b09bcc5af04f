"""What a training step needs of memory, by arithmetic, and what the machine here has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import psutil
import torch

from cwdpo.data.check import ROUGH, memory_estimate


class PartFacts(TypedDict):
    """Weights of one part of a model, and how many of them full fine-tuning trains."""

    total: int
    trainable: int


class LoraFacts(TypedDict):
    """The layers that LoRA would train, and how many weights it adds."""

    r: int
    targets: list[str]
    weights: int


ModelFacts = TypedDict(
    "ModelFacts",
    {
        "name_or_path": str,
        "class": str,
        "dtype": str,
        "max_length": int | None,
        "parts": dict[str, PartFacts],
        "lora": LoraFacts,
        "shape": dict[str, int],
    },
)
"""What is known of a model without its weights."""


class Device(NamedTuple):
    """Where a run would train: the first GPU, else the CPUs."""

    name: str
    memory: int
    """Bytes: all of a GPU's, or what of the main memory is free."""

    is_gpu: bool
    has_bf16: bool
    """Whether it computes in bfloat16 as fast as it can."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What of a run decides how much memory a step takes."""

    dtype: str = "auto"
    """As ``model.dtype``."""

    lora: bool = True
    bits: Literal[4, 8] | None = None
    """Of a quantised base."""

    rows: int = 1
    """Rows that one device takes at a time."""

    max_tokens: int | None = None
    """As ``trainer.max_tokens_per_batch``."""

    checkpointing: bool = True
    """Whether activations are recomputed, or may be: ``auto`` recomputes them where a step would not fit else."""


def this_device() -> Device:
    """The device that ``cwdpo train`` would use here."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return Device(found.name, found.total_memory, True, torch.cuda.is_bf16_supported())
    return Device("CPU", psutil.virtual_memory().available, False, False)


def step_memory(facts: ModelFacts, plan: StepPlan, longest: int) -> dict[str, int]:
    """Bytes of a step of stage 2 by purpose, and in ``total``, where all rows are as long as the longest.

    Each row is counted with both answers and the prompt of each, ``longest`` tokens; the engine shares prompts, and so
    stays below.

    Example:
        >>> facts = {"name_or_path": "m", "class": "M", "dtype": "bfloat16", "max_length": None,
        ...     "parts": {"language model": {"total": 1000, "trainable": 1000}},
        ...     "lora": {"r": 1, "targets": ["q"], "weights": 10},
        ...     "shape": {"hidden_size": 4, "num_layers": 2, "vocabulary_size": 8}}
        >>> step_memory(facts, StepPlan(rows=2), longest=5)["weights"]
        2020
        >>> step_memory(facts, StepPlan(bits=4), longest=5)["weights"]
        520
    """
    weights = sum(part["total"] for part in facts["parts"].values())
    adapters = facts["lora"]["weights"] if plan.lora else 0
    trainable = adapters if plan.lora else sum(part["trainable"] for part in facts["parts"].values())
    value = bytes_per_value(facts["dtype"] if plan.dtype == "auto" else plan.dtype)
    tokens = plan.rows * 2 * longest
    found = memory_estimate(
        num_parameters=weights + adapters,
        trainable_parameters=trainable,
        bytes_per_value=value,
        tokens_per_batch=tokens if plan.max_tokens is None else min(tokens, max(plan.max_tokens, longest)),
        checkpointing=plan.checkpointing,
        **facts["shape"],
    )
    if plan.bits is not None:
        base = weights * plan.bits // 8
        found |= {"weights": base + adapters * value, "total": found["total"] - weights * value + base}
    return found


def bytes_per_value(dtype: str) -> int:
    """Of one number of a type by its name."""
    kind: torch.dtype = getattr(torch, dtype)
    return kind.itemsize


def fits(memory: Mapping[str, int], device: Device) -> bool:
    """Whether a step surely has room: as much as the estimate may be wrong by, on top."""
    return memory["total"] * ROUGH <= device.memory
