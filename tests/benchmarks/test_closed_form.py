"""The closed form against torch's counter, of trees with a mask: split attention takes a little less."""

from dataclasses import replace

import pytest
from bench.steps import TINY, Case, count

from benchmarks.closed_form import (
    METHODS,
    PUBLISHED,
    closed_form_table,
    reference_flops,
    row_lengths,
    step_flops,
)
from cwdpo.bench.contestants import SETTINGS, ModelSize, Setting, VisionSize, build_model, build_processor

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


@pytest.mark.bench
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
    size: ModelSize, setting: Setting, lora: bool, checkpointing: bool
) -> None:
    case = Case(size=size, setting=setting, lora=lora, checkpointing=checkpointing)
    pairs = count(case, METHODS["TRL"]).pairs
    shape = {"prompt": setting.image_tokens + setting.text, "image_tokens": setting.image_tokens}
    for name, method in METHODS.items():
        if method.features == "cached" and not lora:
            continue  # the tower trains
        counted = count(case, method, "mask" if method.rows == "tree" else None)
        formula = step_flops(size, method, pairs, **shape, lora=lora, checkpointing=checkpointing)
        assert formula == pytest.approx(counted.step, rel=0.03), name
        if method.reference == "cached":
            once = reference_flops(size, method, pairs, **shape, adapters=lora)
            assert once == pytest.approx(counted.reference_pass, rel=0.03)


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
