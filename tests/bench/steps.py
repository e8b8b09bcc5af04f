"""Steps of TRL and of this package whose FLOPs are counted: each once, however many tests ask for it."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.closed_form import Method
from benchmarks.without_products import without_products
from cwdpo.bench.contestants import (
    Contestant,
    ModelSize,
    Setting,
    Task,
    VisionSize,
    build_model,
    build_processor,
    cw_dpo,
    make_rows,
    trl_dpo,
)
from cwdpo.bench.counting import count_flops
from cwdpo.engine.tree import TreeAttention

TINY = ModelSize(
    vision=VisionSize(depth=4, full_attention=(3,), width=80, mlp_width=214, heads=2),
    depth=4,
    width=128,
    mlp_width=688,
    heads=4,
    kv_heads=1,
    vocabulary=1000,
    tied=True,
    lora_rank=1,
)
"""The 3B model's proportions, every width a sixteenth."""

_FOLDER = tempfile.TemporaryDirectory(prefix="cwdpo-steps-")  # where trainers may write


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a step is taken on, and which weights train."""

    size: ModelSize
    setting: Setting
    lora: bool
    checkpointing: bool


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What torch counted, in FLOPs."""

    step: int
    reference_pass: int | None
    """None where the reference is not cached."""

    pairs: list[tuple[int, int]]
    """Tokens of each pair's chosen and rejected answer; empty but for TRL, whose batches say."""


@cache
def count(case: Case, method: Method, attention: TreeAttention | None = None) -> Counted:
    """Count a step of this case by this method; the second time, remember it. ``attention`` is of a tree."""
    with without_products():
        contestant = make_contestant(make_task(case), method, attention)
        step = count_flops(contestant.step)
        once = count_flops(contestant.reference_pass) if method.reference == "cached" else None
    mask = contestant.batch.get("completion_mask")
    pairs = mask.sum(dim=1).view(2, -1).T.tolist() if mask is not None else []
    return Counted(step=step, reference_pass=once, pairs=[(chosen, rejected) for chosen, rejected in pairs])


def make_task(case: Case) -> Task:
    """The case as contestants take it; each copies the model."""
    processor, model, rows = _parts(case.size, case.setting)
    return Task(
        model=model,
        processor=processor,
        rows=rows,
        lora_rank=case.size.lora_rank if case.lora else None,
        checkpointing=case.checkpointing,
        directory=Path(_FOLDER.name),
    )


def make_contestant(task: Task, method: Method, attention: TreeAttention | None = None) -> Contestant:
    """A contestant that steps by this method and is ready to be counted."""
    if method.rows == "trl":
        return trl_dpo(task, compact_head=True)
    features = method.features == "cached"
    contestant = cw_dpo(task, engine=method.rows, reference=method.reference, features=features, attention=attention)
    with torch.no_grad():
        contestant.loss()  # engines check themselves in their first forward pass
    return contestant


@cache
def _parts(size: ModelSize, setting: Setting) -> tuple[Any, Any, Any]:
    processor = build_processor(size.vision)
    return processor, build_model(size, processor), make_rows(setting, size.vision)
