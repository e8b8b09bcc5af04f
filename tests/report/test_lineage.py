"""Runs that start from another run's stage."""

import json
from pathlib import Path

from report.synthetic import write_lines

from cwdpo.report import write_report
from cwdpo.report.runs import Run, aligned, read_sources


def write(path: Path, model: object, **stages: int) -> Path:
    write_lines(path / "metrics.jsonl", [{"stage": stage, "step": n, "loss": 1.0} for stage, n in stages.items()])
    (path / "summary.json").write_text(json.dumps({"model": model}))
    return path


def read(*paths: Path) -> list[Run]:
    return [run for source in read_sources(paths, []) for run in source.runs]


def test_run_is_put_after_the_stage_it_starts_from(tmp_path: Path) -> None:
    dpo = write(tmp_path / "dpo", "base", stage1=100, stage2=40)
    sft = write(tmp_path / "sft", "/where/it/was/made/dpo/stage1", stage1=40)
    more = write(tmp_path / "more", "sft/stage1", stage1=5)
    runs, told = aligned(read(sft, dpo, more))
    assert [run.metrics["loss"].segments[0].points[0][0] for run in runs] == [140.0, 100.0, 145.0]
    assert [run.stages for run in runs] == [{"stage1": 100}, {"stage1": 0, "stage2": 100}, {"stage1": 140}]
    assert [run.num_steps for run in runs] == [140, 140, 145]
    assert told == [
        "sft continues dpo's stage 1 from step 100.",
        "more continues sft's stage 1 from step 140.",
    ]


def test_a_run_that_starts_from_the_last_stage(tmp_path: Path) -> None:
    first = write(tmp_path / "a", None, stage1=10, stage2=20)
    second = write(tmp_path / "b", "a/stage2", stage1=1)
    assert aligned(read(first, second))[0][1].stages == {"stage1": 30}


def test_other_runs_stay(tmp_path: Path) -> None:
    a = write(tmp_path / "x/a", "b/stage1", stage1=10)
    b = write(tmp_path / "y/b", 3, stage1=10)
    assert aligned(read(a, b)) == (read(a, b), [])


def test_a_circle_ends(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "b/stage1", stage1=10)
    b = write(tmp_path / "b", "a/stage1", stage1=10)
    assert len(aligned(read(a, b))[0]) == 2


def test_the_page_says_so(tmp_path: Path) -> None:
    write(tmp_path / "dpo", "base", stage1=100, stage2=40)
    write(tmp_path / "sft", "dpo/stage1", stage1=40)
    page = write_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    assert "<li>sft continues dpo&#39;s stage 1 from step 100.</li>" in page
    assert page.count('data-value="140.0"') == 2  # last step of either
