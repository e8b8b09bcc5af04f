"""A grid that really trains and measures, small."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.compare.grid import Cell, Grid, Outcome, cells, read_grid
from cwdpo.compare.run import run_cells, run_grid
from cwdpo.compare.table import Results
from cwdpo.errors import ConfigError, UserError

GRID = """\
recipe: base.yaml
make: cwdpo.demo.regimes:make
measure: cwdpo.demo.regimes:measure
worlds:
  own: {start: base, scenes: 24, held_out: 6, captions: 2}
methods:
  SFT: {stage1: {objective: plain}, stage2: null}
  CW-DPO: {stage2.cooling.floor: chosen - 2 tau}
settings:
  trainer.learning_rate: [1e-3]
seeds: [0]
target: win
"""
BASE = """\
model: {name_or_path: m, dtype: float32, freeze_vision: false}
data: {train: rows.jsonl}
stage2: {}
probes: null
trainer: {max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, report_to: none, eval_strategy: "no"}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "grid.yaml").write_text(GRID)
    return read_grid(tmp_path / "grid.yaml")


def files(out: Path) -> dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("measured.json")}


@pytest.mark.slow
def test_a_grid_trains_measures_goes_on_and_is_reported(grid: Grid, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = [
        Cell("own", 0, method, setting)
        for method, setting in [("start", ()), ("SFT", (("trainer.learning_rate", 1e-3),))]
    ]
    run_cells(grid, out, plan)
    done = files(out)
    assert len(done) == 2
    answered = CliRunner().invoke(app, ["compare", str(tmp_path / "grid.yaml"), "--out", str(out)])
    assert answered.exit_code == 0, answered.output
    after = files(out)
    assert len(after) == 3
    assert done.items() <= after.items()  # nothing was done twice
    assert not list((out / "cells").rglob("*.safetensors"))
    results = Results.read(grid, out)
    assert results.score("own", "start", (), "win").mean == 0.5
    assert results.methods("own") == ["start", "SFT", "CW-DPO"]
    assert "3 of 3 runs" in answered.output
    assert "CW-DPO" in (out / "report.html").read_text()
    assert json.loads((out / "summary.json").read_text())["table"]["rows"][1]["name"] == "CW-DPO"


def test_other_settings_under_the_same_name_are_refused(grid: Grid, tmp_path: Path) -> None:
    cell = Cell("own", 0, "CW-DPO", (("trainer.learning_rate", 1e-3),))
    directory = cell.directory(tmp_path)
    directory.mkdir(parents=True)
    (directory / "measured.json").write_text('{"fingerprint": "other"}')
    world = tmp_path / "worlds" / "own" / "seed-0"
    world.mkdir(parents=True)
    (world / "made.json").write_text("{}")
    with pytest.raises(UserError, match="was measured with other settings than the grid has now"):
        run_cells(grid, tmp_path, [cell])


def test_a_wrong_method_is_found_before_anything_runs(grid: Grid, tmp_path: Path) -> None:
    grid.methods["CW-DPO"]["stage2.cooling.floor"] = "median"
    with pytest.raises(ConfigError, match="method 'CW-DPO'"):
        run_grid(grid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_not_measured_is_said_after_the_first_run(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr("cwdpo.compare.run._load_measure", lambda grid: lambda *_, **__: Outcome({}, {"win": 1.0}))
    monkeypatch.setattr("cwdpo.compare.run._train", lambda recipe, *_: trained.append(recipe) or tmp_path)
    world = tmp_path / "worlds" / "own" / "seed-0"
    world.mkdir(parents=True)
    (world / "made.json").write_text('{"data.eval": "held.jsonl"}')
    run_cells(grid, tmp_path, list(cells(grid)))
    assert len(trained) == 2
    shutil.rmtree(tmp_path / "cells")
    with pytest.raises(ConfigError, match=r"target is 'accuracy', which is not measured. Write one of: win\."):
        run_cells(replace(grid, target="accuracy"), tmp_path, list(cells(grid)))
    assert len(trained) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "token_acuracy"},
            r"target is 'token_acuracy', .* Did you mean token_accuracy\?",
        ),
        ({"target": "exact_match", "measures": ["bleu4"]}, r"measures is 'bleu4', .* Did you mean bleu_4\?"),
    ],
)
def test_a_name_that_evaluate_has_not_is_found_before_anything_runs(
    grid: Grid, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_grid(replace(grid, measure=Grid.measure, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_these_rows_do_not_allow_is_found_at_the_start_model(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Outcome({}, {"exact_match": 1.0})
    monkeypatch.setattr("cwdpo.compare.run._load_measure", lambda grid: lambda *_, **__: found)
    world = tmp_path / "worlds" / "own" / "seed-0"
    world.mkdir(parents=True)
    (world / "made.json").write_text('{"data.eval": "held.jsonl"}')
    with pytest.raises(
        ConfigError, match=r"target is 'yes_rate', which is not defined on these rows. Write one of: exact_match\."
    ):
        run_cells(replace(grid, measure=Grid.measure, target="yes_rate"), tmp_path, list(cells(grid))[:1])


def test_functions_of_a_grid_are_called_in_one_way(grid: Grid, tmp_path: Path) -> None:
    for functions, said in (
        ({"measure": "fnmatch:fnmatch"}, "measure is fnmatch:fnmatch, which is called as"),
        (
            {"make": "fnmatch:fnmatch", "worlds": {"a": {"b": 1}}},
            "make is fnmatch:fnmatch, which is called as fnm",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            run_grid(replace(grid, **functions), tmp_path / "out")
        assert str(caught.value).startswith(said)
        assert not (tmp_path / "out").exists()


STUCK = """\
import os, time
from pathlib import Path

def make(directory, *, seed, starts):
    directory.mkdir(parents=True)
    return {"data.eval": str(directory / "eval.jsonl")}

def measure(model, *, start, eval_rows, seed):
    pid = Path(eval_rows).parents[2] / "pid"
    if "waits" in str(eval_rows):
        pid.write_text(str(os.getpid()))
        time.sleep(100)
    while not pid.is_file() or not pid.read_text():
        time.sleep(0.1)
    raise ValueError("this run fails")
"""


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid of two runs: one hangs, and the other fails once the first one has begun."""
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "base.yaml").write_text(BASE)
    text = GRID.replace("cwdpo.demo.regimes", "stuck")
    (tmp_path / "grid.yaml").write_text(
        text.replace("  own: {start: base, scenes: 24, held_out: 6, captions: 2}\n", "  waits: {}\n  fails: {}\n")
    )
    return tmp_path / "grid.yaml"


def ends(pid: int) -> bool:
    """Whether the process is gone within 30 seconds."""
    for _ in range(300):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_a_run_that_fails_ends_the_others(stuck: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this run fails"):
        run_grid(read_grid(stuck), tmp_path / "out", jobs=2)
    assert ends(int((tmp_path / "out" / "worlds" / "pid").read_text()))


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(stuck: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cwdpo", "compare", str(stuck), "--out", str(tmp_path / "out")]
    parent, pid = subprocess.Popen(command), tmp_path / "out" / "worlds" / "pid"
    while not pid.is_file() or not pid.read_text():
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    assert ends(int(pid.read_text()))
