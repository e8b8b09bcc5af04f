"""The closed form against torch's counter, and against sums done by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from cwdpo.bench.contestants import Contestant, Task, cw_dpo, trl_dpo
from cwdpo.bench.counting import count_flops, without_products
from cwdpo.bench.flop_model import METHODS, Method, reference_flops, step_flops
from cwdpo.bench.model import build_model, build_processor, make_rows
from cwdpo.bench.sizes import SETTINGS, SIZES, ModelSize, Setting, VisionSize

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


def contestant(task: Task, method: Method) -> Contestant:
    if method.rows == "trl":
        return trl_dpo(task, compact_head=True)
    return cw_dpo(task, engine=method.rows, reference=method.reference)


@pytest.mark.parametrize(
    ("size", "setting", "lora", "checkpointing"),
    [
        (SIZES["small"], SETTINGS["ii"], False, False),
        (SIZES["small"], SETTINGS["ii"], True, True),
        (SIZES["small"], SETTINGS["i256"], True, False),
        (SIZES["small"], SETTINGS["i256"], False, True),
        (WIDE, SETTINGS["ii"], True, False),
        (WIDE, SETTINGS["i256"], True, True),
        (WIDE, replace(SETTINGS["i256"], image_side=4, shortest=3, longest=90), False, True),
    ],
)
def test_closed_form_is_within_ten_percent_of_the_counter(
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
    for name, method in METHODS.items():
        if method.features == "cached":
            continue
        with without_products():
            given = contestant(task, method)
            given.step()
            counted = count_flops(given.step)
        if name == "TRL":
            lengths = given.batch["completion_mask"].sum(dim=1).view(2, -1).T.tolist()
        pairs = [(chosen, rejected) for chosen, rejected in lengths]
        shape = {"prompt": setting.prompt, "image_tokens": setting.image_tokens}
        formula = step_flops(size, method, pairs, **shape, lora=lora, checkpointing=checkpointing)
        print(name, formula / counted)
        assert formula == pytest.approx(counted, rel=0.1), name
        if name == "tree, cached reference":
            with without_products():
                once = count_flops(given.reference_pass)
            assert reference_flops(size, method, pairs, **shape) == pytest.approx(once, rel=0.1)
