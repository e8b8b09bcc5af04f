"""Which curves share an axis, heat maps and reliability diagrams, worked out by hand from the picture's edges."""

import re
from pathlib import Path
from typing import Any

import pytest
from report.synthetic import write_lines

from cwdpo.report.panels import (
    CHOSEN_PROBES,
    METRICS,
    Panel,
    changes,
    heat_maps,
    levels,
    panels,
    reliability_diagrams,
    share_labels,
    share_shade,
)
from cwdpo.report.runs import Run, aligned, read_sources


def read(*directories: Path) -> list[Run]:
    notes: list[str] = []
    runs = [run for source in read_sources(directories, notes) for run in source.runs]
    assert notes == []
    return runs


def run(path: Path, lengths: tuple[int, int], **values: float) -> Path:
    """Two stages of so many steps; every step logs its own value of each key, ``loss`` in both stages."""
    lines: list[dict[str, Any]] = [{"stage": "stage1", "step": i, "loss": 1.0} for i in range(1, lengths[0] + 1)]
    for i in range(1, lengths[1] + 1):
        lines.append({"stage": "stage2", "step": i, "loss": 0.5, **{key: i * y for key, y in values.items()}})
    write_lines(path / "metrics.jsonl", lines)
    return path


def metric_panels(runs: list[Run]) -> list[Panel]:
    return panels(runs, METRICS)


def yticks(panel: Panel) -> list[str]:
    return re.findall(r'class="ytick"[^>]*>([^<]*)<', panel.svg)


def marks(panel: Panel) -> list[tuple[str, str]]:
    return re.findall(r'<path class="mark ([^"]*)" d="M([\d.]+)', panel.svg)


def test_every_curve_has_the_axis_that_shows_it(tmp_path: Path) -> None:
    keys = {"rewards/chosen": 0.1, "rewards/rejected": -10.0}
    drawn = {panel.title: panel for panel in metric_panels(read(run(tmp_path, (2, 4), **keys)))}
    assert yticks(drawn["Reward of chosen answers"]) == ["0.1", "0.2", "0.3", "0.4"]
    assert yticks(drawn["Reward of rejected answers"]) == ["-40", "-30", "-20", "-10"]
    assert "Gradient norm" not in drawn  # nobody logged it


def test_stage_2_begins_after_the_last_step_even_where_that_was_not_logged(tmp_path: Path) -> None:
    run(tmp_path, (5, 10))
    (tmp_path / "summary.json").write_text('{"stages": {"stage1": {"steps": 10}, "stage2": 3}}')
    (loss,) = metric_panels(read(tmp_path))
    assert marks(loss) == [("all", "179.5")]


def test_shared_boundary_is_one_mark_and_others_have_their_run_s_colour(tmp_path: Path) -> None:
    same = [run(tmp_path / name, (10, 10)) for name in ("a", "b")]
    (loss,) = metric_panels(read(*same))
    assert marks(loss) == [("all", "179.5")]  # steps 1 to 20: (10 - 1) / 19 of the way from 44 to 330
    (loss,) = metric_panels(read(same[0], run(tmp_path / "c", (5, 15))))
    assert [style for style, _ in marks(loss)] == ["c0 d0", "c1 d1"]


def test_ends_are_told_with_the_curve(tmp_path: Path) -> None:
    (loss,) = metric_panels(read(run(tmp_path / "a", (3, 3)), run(tmp_path / "b", (3, 6))))
    assert loss.ends == [(0, "a", "0.5"), (1, "b", "0.5")]
    assert 'aria-label="Loss over steps. Ends: a 0.5, b 0.5."' in loss.svg


def test_every_probe_group_is_drawn_with_its_band_and_its_change(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "metrics.jsonl",
        [{"stage": "stage1", "step": 100, "loss": 1.0}, {"stage": "stage2", "step": 50, "loss": 1.0}],
    )
    lines = [
        {"stage": "stage2", "step": step, "group": group, "n": 8, "mean_logprob": -1.0 + factor * step}
        | {"delta": factor * step, "p10": -3.0, "p90": 0.0, "ece": 0.1, "moved_to_argmax": 0.5}
        for step in (0, 50)
        for group, factor in (("other_image", -0.2), ("mine", 0.0), ("chosen", -0.01))
    ]
    write_lines(tmp_path / "probes.jsonl", lines)
    runs = read(tmp_path)
    level = {panel.title: panel for panel in panels(runs, levels(runs))}
    assert list(level) == ["Chosen", "Other image", "Mine"]  # the order of a reading, then what we do not know
    assert level["Other image"].ends[0][2] == "-11"
    (band,) = re.findall(r'class="band c0 d0" d="([^"]*)"', level["Chosen"].svg)
    # from 0 to -3 with a twentieth of that on either side, the picture's 14 to 162
    assert band == "M44.0 20.7L330.0 20.7L330.0 155.3L44.0 155.3Z"
    change = {panel.title: panel for panel in panels(runs, changes(runs))}
    assert list(change) == ["Chosen: change", "Other image: change", "Mine: change"]
    assert change["Other image: change"].ends[0][2] == "-10"
    across = re.findall(r'class="xtick"[^>]*>([^<]*)<', change["Chosen: change"].svg)
    assert across == ["100", "110", "120", "130", "140", "150"]
    assert [panel.title for panel in panels(runs, CHOSEN_PROBES)] == [
        "Calibration error (ECE)",
        "Drift: moved to the argmax",
    ]


def test_every_measure_of_the_chosen_answers_is_drawn(tmp_path: Path) -> None:
    readings = {measure.key: 0.5 for measure in CHOSEN_PROBES}
    line = {"stage": "stage2", "step": 10, "group": "chosen", "n": 2, "mean_logprob": -1.0}
    write_lines(tmp_path / "probes.jsonl", [line | readings])
    write_lines(tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 10, "loss": 1.0}])
    assert len(panels(read(tmp_path), CHOSEN_PROBES)) == len(CHOSEN_PROBES)


def test_a_list_among_the_readings_is_no_curve(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 1, "loss": 1.0, "cooling/histogram": [1] * 10}]
    )
    (run,) = read(tmp_path)
    assert list(run.metrics) == ["loss"]


def with_histograms(path: Path, *histograms: list[int], every: int = 10) -> list[Run]:
    lines = [
        {"stage": "stage2", "step": every * i, "loss": 1.0, "cooling/histogram": counts}
        for i, counts in enumerate(histograms, start=1)
    ]
    write_lines(path / "metrics.jsonl", lines)
    return [run for source in read_sources([path], []) for run in source.runs]


def cells(svg: str, level: int) -> list[str]:
    found = re.findall(rf'<path class="w{level}" d="([^"]*)"', svg)
    return [f"{part}Z" for data in found for part in data.split("Z")[:-1]]


def test_cells_stand_where_their_steps_and_weights_are(tmp_path: Path) -> None:
    (drawn,) = heat_maps(with_histograms(tmp_path, [1, 0, 0, 0, 0, 0, 0, 0, 0, 3], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    # 44 to 330 across for steps 0 to 20; 162 up to 14 for 0 to 1, so 14.8 a bin
    assert cells(drawn.svg, 5) == ["M44.0 147.2H187.0V162.0H44.0Z"]  # a quarter of the first ten steps
    assert cells(drawn.svg, 8) == ["M44.0 14.0H187.0V28.8H44.0Z", "M187.0 147.2H330.0V162.0H187.0Z"]
    assert sum(len(cells(drawn.svg, level)) for level in range(9)) == 3  # no negative, no cell
    assert drawn.words == "w_c under 0.1: 25% at first, 100% at last. Over 0.9: 75% at first, 0% at last."
    assert "<title>Steps 0 to 10, by w_c from\n0.9: 75%\n0.0: 25%</title>" in drawn.svg


def test_long_runs_stay_small(tmp_path: Path) -> None:
    (drawn,) = heat_maps(with_histograms(tmp_path, *[[5, 1, 1, 1, 1, 1, 1, 1, 1, 5]] * 5000))
    assert len(drawn.svg) < 60_000
    assert len(re.findall("<title>", drawn.svg)) <= 80


def test_a_run_without_histograms_has_no_map(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 1, "loss": 1.0}])
    assert heat_maps([run for source in read_sources([tmp_path], []) for run in source.runs]) == []


def test_a_run_that_begins_later_is_drawn_later(tmp_path: Path) -> None:
    first = with_histograms(tmp_path / "a", [1] * 10, [1] * 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/summary.json").write_text('{"model": "a/stage2"}')
    second = with_histograms(tmp_path / "b", [1] * 10, [1] * 10)
    runs, _ = aligned([*first, *second])
    assert [h.begin for h in runs[1].histograms] == [20, 30]
    assert [h.end for h in runs[1].histograms] == [30, 40]


def test_every_share_has_its_shade() -> None:
    assert [share_shade(s) for s in (0, 0.019, 0.021, 0.06, 0.11, 0.21, 0.36, 0.51, 0.76)] == list(range(9))
    assert share_labels()[0] == (1, "under 2%")
    assert share_labels()[3] == (4, "10 to 20%")
    assert share_labels()[-1] == (8, "75% and more")


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
