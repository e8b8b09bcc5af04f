"""Reliability diagrams, worked out by hand from the picture's edges."""

import re
from pathlib import Path

import pytest
from report.synthetic import write_lines

from cwdpo.report.panels import reliability_diagrams
from cwdpo.report.runs import read_sources

Dot = tuple[str, float, float, float]


def dots(path: Path, *readings: tuple[str, int, list[list[float]]]) -> tuple[list[Dot], str]:
    """Kind, place and radius of every dot, and the words."""
    write_lines(path / "metrics.jsonl", [{"stage": stage, "step": 10, "loss": 1.0} for stage in ("stage1", "stage2")])
    lines = [
        {"stage": stage, "step": step, "group": "chosen", "n": 2, "mean_logprob": -1.0, "reliability": bins}
        for stage, step, bins in readings
    ]
    write_lines(path / "probes.jsonl", lines)
    (drawn,) = reliability_diagrams([run for source in read_sources([path], []) for run in source.runs])
    found = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)">', drawn.svg)
    return [(kind, float(x), float(y), float(r)) for kind, x, y, r in found], drawn.words


def test_dots_lie_at_confidence_and_accuracy_and_their_area_is_the_share(tmp_path: Path) -> None:
    early, late = [[0, 0.0, 0.0], [75, 0.5, 0.5], [25, 1.0, 0.0]], [[100, 0.75, 0.25]]
    found, words = dots(tmp_path, ("stage1", 0, late), ("stage2", 0, early), ("stage2", 5, late), ("stage2", 10, late))
    # a square from 44 to 330 and from 300 up to 14
    expected = [("first", 187.0, 157.0), ("first", 330.0, 300.0), ("last", 258.5, 228.5)]
    assert [dot[:3] for dot in found] == expected
    areas = [dot[3] ** 2 for dot in found]
    assert areas[0] / areas[2] == pytest.approx(0.75, rel=0.02)  # radii are written to a tenth
    assert areas[1] / areas[2] == pytest.approx(0.25, rel=0.02)
    assert words == "Stage 2: ECE 0.250 at step 0, 0.500 at step 10 (100 tokens)."  # .75 x 0 + .25 x 1


def test_a_single_reading_is_the_last(tmp_path: Path) -> None:
    found, words = dots(tmp_path, ("stage2", 0, [[100, 0.75, 0.5]]))
    assert [dot[0] for dot in found] == ["last"]
    assert words == "Stage 2: ECE 0.250 at step 0 (100 tokens)."


def test_other_groups_and_broken_bins_are_left_out_and_told(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 10, "loss": 1.0}])
    bad = {"stage": "stage2", "step": 0, "group": "chosen", "reliability": [[1, 2]], "delta": 0.0}
    other = {"stage": "stage2", "step": 0, "group": "gentle", "reliability": [[1, 0.5, 0.5]], "delta": 0.0}
    write_lines(tmp_path / "probes.jsonl", [bad, other])
    notes: list[str] = []
    runs = [run for source in read_sources([tmp_path], notes) for run in source.runs]
    assert reliability_diagrams(runs) == []
    assert notes == [f"{tmp_path.name}: reliability could not be read in 1 line."]
