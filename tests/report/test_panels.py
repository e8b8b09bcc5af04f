"""Which curves share an axis, and where stages are marked."""

import re
from pathlib import Path
from typing import Any

from report.synthetic import write_lines

from cwdpo.report.panels import CHOSEN_PROBES, METRICS, Panel, changes, levels, panels
from cwdpo.report.runs import Run, read_sources


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


def test_a_list_among_the_readings_is_no_curve(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 1, "loss": 1.0, "cooling/histogram": [1] * 10}]
    )
    (run,) = read(tmp_path)
    assert list(run.metrics) == ["loss"]
