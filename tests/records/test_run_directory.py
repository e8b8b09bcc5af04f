"""The run directory: its names, what it refuses, and what resuming drops."""

from pathlib import Path

import pytest

from cwdpo.errors import UserError
from cwdpo.records import RunDirectory, read_jsonl


def test_names_are_those_of_the_contract(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    found = [run.recipe, run.stage("stage1"), run.stage("stage2"), run.metrics, run.probes, run.findings, run.summary]
    names = ["recipe.yaml", "stage1", "stage2", "metrics.jsonl", "probes.jsonl", "findings.json", "summary.json"]
    assert [path.name for path in [*found, run.report]] == [*names, "report.html"]
    assert run.checkpoints("stage2") == tmp_path / "checkpoints" / "stage2"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "a"
    run = RunDirectory.open(root, resume=False)
    RunDirectory.open(root, resume=False)  # still empty
    run.recipe.write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"is not empty, and nothing is overwritten.*--resume"):
        RunDirectory.open(root, resume=False)
    assert RunDirectory.open(root, resume=True) == run


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="holds no run to resume"):
        RunDirectory.open(tmp_path, resume=True)
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.open(tmp_path / "thesis.tex", resume=True)
    assert RunDirectory.open(tmp_path / "new", resume=True).root.is_dir()


def test_a_stage_is_finished_only_when_it_says_so(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    run.stage("stage1").mkdir()
    assert not run.is_finished("stage1")
    run.mark_finished("stage1", {"steps": 3})
    assert run.is_finished("stage1")
    assert not run.is_finished("stage2")


def test_a_stage_whose_model_is_gone_is_not_finished(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    run.stage("stage1").mkdir()
    run.mark_finished("stage1")
    run.stage("stage1").rmdir()
    assert not run.is_finished("stage1")
    assert run.was_finished("stage1")


def test_what_is_kept_is_there_for_the_next_session(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    assert run.kept("floor") == {}
    run.keep("floor", {"rule": "gentle", "measured": -1.25})
    assert RunDirectory(tmp_path).kept("floor") == {"rule": "gentle", "measured": -1.25}


def test_resuming_drops_the_later_lines_of_that_stage(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    for step in (1, 2, 3):
        run.append_metrics({"stage": "stage1", "step": step, "loss": 1.0})
    for step in (1, 2, 3):
        run.append_metrics({"stage": "stage2", "step": step, "loss": 1.0})
        run.append_probes([{"stage": "stage2", "step": step, "group": group} for group in ("chosen", "rejected")])
    with run.metrics.open("a") as file:
        file.write('{"stage": "stage2", "st')
    assert run.truncate_after("stage2", 1) == 2 + 1 + 4
    kept = [(line["stage"], line["step"]) for line in read_jsonl(run.metrics).objects]
    assert kept == [("stage1", 1), ("stage1", 2), ("stage1", 3), ("stage2", 1)]
    assert [line["step"] for line in read_jsonl(run.probes).objects] == [1, 1]
    assert run.truncate_after("stage2", 1) == 0


def test_resuming_stage_1_forgets_stage_2(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    run.append_metrics({"stage": "stage1", "step": 5})
    run.append_metrics({"stage": "stage2", "step": 1})
    assert run.truncate_after("stage1", 5) == 1
    assert read_jsonl(run.metrics).objects == [{"stage": "stage1", "step": 5}]
