"""What a step may cost at most beside TRL, in FLOPs: TRL as it scores on CUDA, answer tokens alone."""

import pytest
from bench.steps import TINY, Case, count, make_contestant, make_task

from benchmarks.closed_form import METHODS
from benchmarks.without_products import without_products
from cwdpo.bench.contestants import SETTINGS, trl_dpo
from cwdpo.bench.counting import count_flops

pytestmark = pytest.mark.bench


def share_of_trl(method: str, setting: str, *, lora: bool, checkpointing: bool) -> float:
    case = Case(size=TINY, setting=SETTINGS[setting], lora=lora, checkpointing=checkpointing)
    return count(case, METHODS[method]).step / count(case, METHODS["TRL"]).step


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
def test_tree_with_cached_reference(setting: str, lora: bool, checkpointing: bool, limit: float) -> None:
    assert 0.1 < share_of_trl("tree, cached reference", setting, lora=lora, checkpointing=checkpointing) <= limit


def test_tree_with_cached_reference_and_features() -> None:
    method = "tree, cached reference and features"
    assert 0.1 < share_of_trl(method, "i1024", lora=True, checkpointing=False) <= 0.20


def test_counting_without_products_counts_the_same() -> None:
    case = Case(size=TINY, setting=SETTINGS["ii"], lora=True, checkpointing=True)
    task = make_task(case)
    with without_products():
        ours, theirs = (make_contestant(task, METHODS[name]) for name in ("tree", "TRL"))
        strict = trl_dpo(task, compact_head=False)
        skipped = [count_flops(contestant.step) for contestant in (ours, strict)]
    skipped.append(count(case, METHODS["TRL"]).step)
    assert skipped == [count_flops(contestant.step) for contestant in (ours, strict, theirs)]
    assert min(skipped) > 1e8
