"""Readings that are lists, against sums done by hand, and runs that start from another run's stage."""

import json
from pathlib import Path
from typing import Any

import pytest
from report.synthetic import write_lines

from cwdpo.report import write_report
from cwdpo.report.runs import (
    Histogram,
    Run,
    aligned,
    first_and_last,
    joined_histograms,
    read_histograms,
    read_reliability,
    read_sources,
)

ONE = [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_a_histogram_counts_since_the_line_before() -> None:
    lines = [
        {"stage": "stage2", "step": 5, "cooling/histogram": ONE},
        {"stage": "stage2", "step": 10, "loss": 1.0},
        {"stage": "stage2", "step": 15, "cooling/histogram": ONE},
    ]
    found, broken = read_histograms(lines, {"stage1": 0, "stage2": 100})
    assert [(h.begin, h.end) for h in found] == [(100, 105), (105, 115)]
    assert found[0].shares == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75]
    assert broken == 0


@pytest.mark.parametrize("value", [3, None, [], [1] * 9, [1] * 11, [1] * 9 + ["x"], [1] * 9 + [-1], [None] * 10])
def test_what_is_no_histogram_is_counted(value: Any) -> None:
    assert read_histograms([{"stage": "s", "step": 1, "cooling/histogram": value}], {"s": 0}) == ([], 1)


def test_a_stretch_without_negatives_is_left_blank() -> None:
    assert read_histograms([{"stage": "s", "step": 1, "cooling/histogram": [0] * 10}], {"s": 0}) == ([], 0)


def test_many_histograms_are_added_up() -> None:
    many = [Histogram(float(i), float(i + 1), (float(i), *[1.0] * 9)) for i in range(5)]
    assert joined_histograms(many, most=3) == [
        Histogram(0, 2, (1.0, *[2.0] * 9)),
        Histogram(2, 4, (5.0, *[2.0] * 9)),
        Histogram(4, 5, (4.0, *[1.0] * 9)),
    ]
    assert joined_histograms(many, most=5) == many
    assert joined_histograms([], most=3) == []


def test_ece_by_hand_and_empty_bins() -> None:
    bins = [[0, 0.0, 0.0], [30, 0.6, 0.5], [10, 0.9, 0.95]]
    (reading,), broken = read_reliability([{"stage": "stage2", "step": 3, "reliability": bins}])
    assert [one.n for one in reading.bins] == [30, 10]
    assert reading.n == 40
    assert reading.ece == pytest.approx((30 * 0.1 + 10 * 0.05) / 40)
    assert broken == 0


@pytest.mark.parametrize("value", [3, [], [[1, 0.5]], [[1, 0.5, 1.5]], [[-1, 0.5, 0.5]], [[1, 0.5, 0.5], None]])
def test_what_is_no_reliability_is_counted(value: Any) -> None:
    assert read_reliability([{"stage": "s", "step": 1, "reliability": value}]) == ([], 1)


def test_first_and_last_are_of_the_last_stage() -> None:
    lines = [{"stage": stage, "step": i, "reliability": [[1, 0.5, 0.5]]} for i, stage in enumerate("abbb")]
    found, _ = read_reliability(lines)
    assert [reading.step for reading in first_and_last(found)] == [1, 3]
    assert [reading.step for reading in first_and_last(found[:2])] == [1]


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
    runs, shown = aligned(read(sft, dpo, more))
    assert [run.metrics["loss"].segments[0].points[0][0] for run in runs] == [140.0, 100.0, 145.0]
    assert [run.stages for run in runs] == [{"stage1": 100}, {"stage1": 0, "stage2": 100}, {"stage1": 140}]
    assert [run.num_steps for run in runs] == [140, 140, 145]
    assert shown == [
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
