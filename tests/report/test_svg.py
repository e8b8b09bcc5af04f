"""Where charts put a reading, worked out by hand from the picture's edges."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.report.charts import (
    Line,
    Mark,
    Point,
    Segment,
    Series,
    chart,
    num_outside,
    style_classes,
    tick_label,
    ticks,
    value_range,
)


def line(*values: float | None, rank: int = 0) -> Line:
    points: tuple[Point, ...] = tuple((float(i), y) for i, y in enumerate(values))
    return Line("run", rank, Series((Segment("stage1", points),)))


def paths(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<path class="{kind} [^"]*" d="([^"]*)"', svg)


def test_corners() -> None:
    svg = chart([line(0.0, 10.0)], [], x=(0, 1), y=(0, 10), label="x")
    assert paths(svg, "line") == ["M44.0 162.0L330.0 14.0"]  # y grows downwards in SVG


def test_gap_lifts_the_pen_and_a_lone_reading_is_a_dot() -> None:
    svg = chart([line(0.0, 0.0, None, 10.0, None)], [], x=(0, 4), y=(0, 10), label="x")
    assert paths(svg, "line") == ["M44.0 162.0L115.5 162.0M258.5 14.0h0"]
    single = chart([line(5.0)], [], x=(0, 0), y=(5, 5), label="x")
    assert paths(single, "dot line") == ["M187.0 88.0h0"]


def test_reading_outside_is_drawn_at_the_edge_and_counted() -> None:
    lines = [line(0.0, 99.0)]
    assert paths(chart(lines, [], x=(0, 1), y=(0, 10), label="x"), "line") == ["M44.0 162.0L330.0 14.0"]
    assert num_outside(lines, (0, 10)) == 1


def test_one_spike_does_not_flatten_a_long_curve() -> None:
    values = [float(i % 10) for i in range(1000)]
    values[500] = 1e6
    assert value_range([line(*values)]) == pytest.approx((-0.45, 9.45))
    short = [0.0, 1.0, 2.0, 100.0]
    assert value_range([line(*short)]) == pytest.approx((-5.0, 105.0))  # too few readings to call one a spike


def test_all_of_a_steep_start_is_shown() -> None:
    values = [2.0 if i == 0 else 1.0 - i / 1000 for i in range(1000)]
    assert value_range([line(*values)]) == pytest.approx((0.001 - 0.09995, 2.09995))


def test_fixed_axis_yields_to_readings_outside_it() -> None:
    assert value_range([line(0.2, 0.4)], (0.0, 1.0)) == (0.0, 1.0)
    assert value_range([line(0.2, 1.2)], (0.0, 1.0)) == pytest.approx((0.15, 1.25))
    assert value_range([line(None)], (0.0, 1.0)) is None


def test_labels_are_escaped_and_a_stage_is_named_once() -> None:
    marks = [Mark(0.2, "<b>", 0), Mark(0.8, "<b>", 1)]
    svg = chart([line(0.0, 1.0)], marks, x=(0, 1), y=(0, 1), label='"<i>')
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert svg.count("&lt;b&gt;</text>") == 1
    assert len(paths(svg, "mark")) == 2


def test_24_runs_have_24_styles() -> None:
    assert len({style_classes(rank) for rank in range(24)}) == 24


@settings(deadline=None)
@given(low=st.floats(-1e6, 1e6), size=st.floats(1e-3, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, size: float) -> None:
    found = ticks(low, low + size)
    assert 2 <= len(found) <= 8
    assert all(low - size * 1e-6 <= tick <= low + size * (1 + 1e-6) for tick in found)


def test_whole_ticks_for_steps() -> None:
    assert ticks(0, 3, about=5, whole=True) == [0, 1, 2, 3]


@pytest.mark.parametrize(("value", "text"), [(2.5, "2.5"), (1e-4, "1e-4"), (-250000.0, "-2.5e5"), (0.1 + 0.2, "0.3")])
def test_tick_labels(value: float, text: str) -> None:
    assert tick_label(value) == text
