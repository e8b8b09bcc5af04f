"""What a step may cost at most beside TRL, in FLOPs: TRL as it scores on CUDA, answer tokens alone."""

from pathlib import Path

import pytest
from bench.tiny_size import TINY

from benchmarks.without_products import without_products
from cwdpo.bench.contestants import SETTINGS, Task, build_model, build_processor, cw_dpo, make_rows, trl_dpo
from cwdpo.bench.counting import count_flops


def make_task(setting: str, directory: Path, *, lora: bool, checkpointing: bool) -> Task:
    size = TINY
    processor = build_processor(size.vision)
    return Task(
        model=build_model(size, processor),
        processor=processor,
        rows=make_rows(SETTINGS[setting], size.vision),
        lora_rank=size.lora_rank if lora else None,
        checkpointing=checkpointing,
        directory=directory,
    )


@pytest.mark.parametrize(
    ("setting", "lora", "checkpointing", "limit"),
    [
        ("ii", False, False, 0.44),
        ("i256", False, False, 0.43),
        ("i1024", False, False, 0.40),
        ("ii", True, False, 0.39),
        ("i256", True, False, 0.38),
        ("i1024", True, False, 0.33),
        ("ii", True, True, 0.35),
        ("i256", True, True, 0.31),
        ("i1024", True, True, 0.22),
    ],
)
def test_tree_with_cached_reference(
    setting: str, lora: bool, checkpointing: bool, limit: float, tmp_path: Path
) -> None:
    task = make_task(setting, tmp_path, lora=lora, checkpointing=checkpointing)
    with without_products():
        ours = cw_dpo(task, engine="tree", reference="cached")
        ours.step()  # the engine checks itself in its first step
        theirs = trl_dpo(task, compact_head=True)
        ratio = count_flops(ours.step) / count_flops(theirs.step)
    assert 0.1 < ratio <= limit


def test_tree_with_cached_reference_and_features(tmp_path: Path) -> None:
    task = make_task("i1024", tmp_path, lora=True, checkpointing=False)
    with without_products():
        ours = cw_dpo(task, engine="tree", reference="cached", features=True)
        ours.step()
        theirs = trl_dpo(task, compact_head=True)
        ratio = count_flops(ours.step) / count_flops(theirs.step)
    assert 0.1 < ratio <= 0.20


def test_counting_without_products_counts_the_same(tmp_path: Path) -> None:
    task = make_task("ii", tmp_path, lora=True, checkpointing=True)
    for contestant in (
        trl_dpo(task, compact_head=True),
        trl_dpo(task, compact_head=False),
        cw_dpo(task, engine="tree", reference="live"),
    ):
        contestant.step()
        counted = count_flops(contestant.step)
        with without_products():
            assert count_flops(contestant.step) == counted > 1e8
