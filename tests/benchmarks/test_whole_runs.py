"""The demo's whole runs, with one row a prompt and with plain rows, write the same losses."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import whole_runs as engines
from benchmarks.whole_runs import LIMIT, Comparison, compare_engines, demo_recipe
from cwdpo.demo.plans import DemoSettings
from cwdpo.records import read_jsonl

SETTINGS = DemoSettings(
    train_rows=96,
    eval_rows=1,
    batch_size=8,
    stage1_fraction=0.5,
    stage1_steps=6,
    stage2_steps=6,
    stage2_learning_rate=3e-3,
)


@pytest.mark.slow
def test_tree_and_plain_rows_write_the_same_losses(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, SETTINGS)
    found = compare_engines(recipe, tmp_path, say=lambda line: None)
    assert found.steps == SETTINGS.stage1_steps + SETTINGS.stage2_steps
    assert found.gap < LIMIT
    moved = read_jsonl(tmp_path / "plain" / "metrics.jsonl").objects[-1]
    assert abs(moved["rewards/margins"]) > 1e-3  # so equality means something
    control = compare_engines(recipe, tmp_path, other="control", say=lambda line: None)
    assert 0 < control.gap < LIMIT  # another way of rounding, indeed


def lines(*losses: float) -> list[dict[str, Any]]:
    return [{"stage": "stage1", "step": i, "loss": loss} for i, loss in enumerate(losses)]


def test_the_largest_gap_is_found_where_it_is() -> None:
    found = engines._compare(lines(1.0, 2.0, 3.0), lines(1.0, 2.5, 2.75))
    assert found == Comparison(3, 1, 0.5, "stage1", 1, 1.0, 2.75)
    with pytest.raises(RuntimeError, match="3 and 2"):
        engines._compare(lines(1, 2, 3), lines(1, 2))


@pytest.mark.parametrize(("gap", "code"), [(9e-5, 0), (1e-4, 1), (float("nan"), 1)])
def test_exit_code_says_whether_they_are_equal(
    gap: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    found = replace(engines._compare(lines(1.0), lines(1.0)), gap=gap)
    monkeypatch.setattr(engines, "compare_engines", lambda *args, **kwargs: found)
    monkeypatch.setattr(engines, "demo_recipe", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", ["engines", "--out", str(tmp_path / "new")])
    assert engines.main() == code
    assert "differ by at most" in capsys.readouterr().out
