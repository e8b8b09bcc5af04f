"""The heat map of cooling weights, worked out by hand from the picture's edges."""

import re
from pathlib import Path

from report.synthetic import write_lines

from cwdpo.report.panels import heat_maps, share_labels, share_shade
from cwdpo.report.runs import Run, aligned, read_sources


def read(path: Path, *histograms: list[int], every: int = 10) -> list[Run]:
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
    (drawn,) = heat_maps(read(tmp_path, [1, 0, 0, 0, 0, 0, 0, 0, 0, 3], [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
    # 44 to 330 across for steps 0 to 20; 162 up to 14 for 0 to 1, so 14.8 a bin
    assert cells(drawn.svg, 5) == ["M44.0 147.2H187.0V162.0H44.0Z"]  # a quarter of the first ten steps
    assert cells(drawn.svg, 8) == ["M44.0 14.0H187.0V28.8H44.0Z", "M187.0 147.2H330.0V162.0H187.0Z"]
    assert sum(len(cells(drawn.svg, level)) for level in range(9)) == 3  # no negative, no cell
    assert drawn.words == "w_c under 0.1: 25% at first, 100% at last. Over 0.9: 75% at first, 0% at last."
    assert "<title>Steps 0 to 10, by w_c from\n0.9: 75%\n0.0: 25%</title>" in drawn.svg


def test_long_runs_stay_small(tmp_path: Path) -> None:
    (drawn,) = heat_maps(read(tmp_path, *[[5, 1, 1, 1, 1, 1, 1, 1, 1, 5]] * 5000))
    assert len(drawn.svg) < 60_000
    assert len(re.findall("<title>", drawn.svg)) <= 80


def test_a_run_without_histograms_has_no_map(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 1, "loss": 1.0}])
    assert heat_maps([run for source in read_sources([tmp_path], []) for run in source.runs]) == []


def test_a_run_that_begins_later_is_drawn_later(tmp_path: Path) -> None:
    first = read(tmp_path / "a", [1] * 10, [1] * 10)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/summary.json").write_text('{"model": "a/stage2"}')
    second = read(tmp_path / "b", [1] * 10, [1] * 10)
    runs, _ = aligned([*first, *second])
    assert [h.begin for h in runs[1].histograms] == [20, 30]
    assert [h.end for h in runs[1].histograms] == [30, 40]


def test_every_share_has_its_shade() -> None:
    assert [share_shade(s) for s in (0, 0.019, 0.021, 0.06, 0.11, 0.21, 0.36, 0.51, 0.76)] == list(range(9))
    assert share_labels()[0] == (1, "under 2%")
    assert share_labels()[3] == (4, "10 to 20%")
    assert share_labels()[-1] == (8, "75% and more")
