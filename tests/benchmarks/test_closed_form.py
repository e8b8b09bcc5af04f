"""The closed form against torch's counter."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench.tiny_size import TINY

from benchmarks.closed_form import (
    METHODS,
    PUBLISHED,
    Method,
    closed_form_table,
    reference_flops,
    row_lengths,
    step_flops,
)
from benchmarks.without_products import without_products
from cwdpo.bench.contestants import (
    SETTINGS,
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

WIDE = ModelSize(
    vision=VisionSize(depth=2, full_attention=(0,), width=64, mlp_width=200, heads=2),
    depth=3,
    width=192,
    mlp_width=300,
    heads=4,
    kv_heads=2,
    vocabulary=5000,
    lora_rank=8,
)


def make_contestant(task: Task, method: Method) -> Contestant:
    if method.rows == "trl":
        return trl_dpo(task, compact_head=True)
    features = method.features == "cached"
    contestant = cw_dpo(task, engine=method.rows, reference=method.reference, features=features)
    contestant.step()  # engines check themselves in their first step
    return contestant


@pytest.mark.parametrize(
    ("size", "setting", "lora", "checkpointing"),
    [
        (TINY, SETTINGS["ii"], False, False),
        (TINY, SETTINGS["i256"], True, True),
        (WIDE, SETTINGS["ii"], True, False),
        (WIDE, replace(SETTINGS["i256"], image_side=4, shortest=3, longest=90), False, True),
    ],
)
def test_closed_form_is_within_three_percent_of_the_counter(
    size: ModelSize, setting: Setting, lora: bool, checkpointing: bool, tmp_path: Path
) -> None:
    processor = build_processor(size.vision)
    task = Task(
        model=build_model(size, processor),
        processor=processor,
        rows=make_rows(setting, size.vision),
        lora_rank=size.lora_rank if lora else None,
        checkpointing=checkpointing,
        directory=tmp_path,
    )
    shape = {"prompt": setting.image_tokens + setting.text, "image_tokens": setting.image_tokens}
    for name, method in METHODS.items():
        if method.features == "cached" and not lora:
            continue  # the tower trains
        with without_products():
            contestant = make_contestant(task, method)
            counted = count_flops(contestant.step)
        if name == "TRL":
            pairs = contestant.batch["completion_mask"].sum(dim=1).view(2, -1).T.tolist()
        formula = step_flops(size, method, pairs, **shape, lora=lora, checkpointing=checkpointing)
        assert formula == pytest.approx(counted, rel=0.03), name
        if method.reference == "cached":
            with without_products():
                once = count_flops(contestant.reference_pass)
            assert reference_flops(size, method, pairs, **shape, adapters=lora) == pytest.approx(once, rel=0.03)


def test_rows_of_each_layout() -> None:
    pairs = [(20, 30), (25, 12)]
    assert row_lengths(METHODS["TRL"], pairs, 100) == [130] * 4
    assert row_lengths(METHODS["plain"], pairs, 100) == [129] * 4
    assert row_lengths(METHODS["tree"], pairs, 100) == [148] * 2


# what the published checkpoints hold
@pytest.mark.parametrize(("name", "weights"), [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_published_sizes(name: str, weights: int) -> None:
    size = PUBLISHED[name]
    model = build_model(size, build_processor(size.vision), device="meta", dtype="bfloat16")
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_the_table_has_every_size() -> None:
    table = closed_form_table()
    assert table.count("| 72B, 1024 image tokens |") == 4
    assert "| 72B, 1024 image tokens | 1316.4 |" in table
