"""Where charts and pictures put a reading, worked out by hand; smoothing and thinning against loops."""

import math
import random
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.report.charts import (
    Curve,
    Dots,
    Figure,
    Line,
    Mark,
    Point,
    Segment,
    Series,
    chart,
    draw_figure,
    finite,
    num_outside,
    smoothed,
    style_classes,
    thinned,
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


def test_the_unit_stands_over_its_axis_and_over_the_names_of_stages() -> None:
    svg = chart([line(0.0, 10.0)], [Mark(0.0, "stage 2", None)], x=(0, 1), y=(0, 10), label="x", unit="nats")
    unit, stage = (float(re.findall(rf'y="([-\d.]+)">{text}<', svg)[0]) for text in ("nats", "stage 2"))
    assert stage - unit >= 11  # a line of text
    [top] = re.findall(r'viewBox="0 (\S+) 340 ', svg)
    assert float(top) <= unit - 8
    assert unit < stage < 14
    plain = chart([line(0.0, 10.0)], [], x=(0, 1), y=(0, 10), label="x")
    assert 'viewBox="0 0 340 206"' in plain


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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, 1e31, "1", None, True, [1]])
def test_not_a_finite_number(value: object) -> None:
    assert finite(value) is None


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    rng = random.Random(0)
    values = [rng.gauss(0, 1) for _ in range(100)]
    got = smoothed([(float(i), y) for i, y in enumerate(values)])
    for i in range(100):  # 100 readings: two neighbours on each side, fewer at the ends
        reach = min(2, i, 99 - i)
        near = [values[j] for j in range(i - reach, i + reach + 1)]
        assert got[i][1] == pytest.approx(sum(near) / len(near))


def test_smoothing_leaves_a_gap_and_does_not_count_it() -> None:
    points: list[tuple[float, float | None]] = [(float(i), 4.0) for i in range(40)]
    points[20] = (20.0, None)
    got = [y for _, y in smoothed(points)]
    assert got[20] is None
    assert [y for i, y in enumerate(got) if i != 20] == [4.0] * 39


def test_few_readings_are_not_smoothed() -> None:
    points = [(0.0, 1.0), (1.0, 9.0), (2.0, 1.0)]
    assert smoothed(points) == points


def test_thinning_keeps_spikes_gaps_and_order() -> None:
    points: list[tuple[float, float | None]] = [(float(i), math.sin(i)) for i in range(10_000)]
    points[1234], points[5678], points[7000] = (1234.0, 50.0), (5678.0, -50.0), (7000.0, None)
    got = thinned(points, most=200)
    assert len(got) <= 201
    assert {points[1234], points[5678], points[7000]} <= set(got)
    xs = [x for x, y in got if y is not None]
    assert xs == sorted(xs)


def test_ends_are_means_of_a_tenth_and_skip_what_is_broken() -> None:
    first = Segment("stage1", tuple((float(i), float(i)) for i in range(20)))
    last = Segment("stage2", ((20.0, None), (21.0, None)))
    assert first.start == 0.5
    assert first.end == 18.5
    assert last.end is None
    assert Series((first, last)).end == 18.5
    assert Series((first, last)).num_broken == 2
    assert Series((last,)).end is None


def segment(values: list[float]) -> Segment:
    return Segment("stage2", tuple((float(i), y) for i, y in enumerate(values)))


def test_change_counts_only_beyond_the_scatter() -> None:
    rng = random.Random(0)
    noise = [rng.gauss(0, 1) for _ in range(200)]  # tenths of 20: standard error of a change sqrt(2 / 20) = 0.32
    assert segment([-0.001 * i for i in range(200)]).moved == pytest.approx(-0.18)
    assert segment([y - 0.001 * i for i, y in enumerate(noise)]).moved == 0.0
    assert segment([y - 0.01 * i for i, y in enumerate(noise)]).moved == pytest.approx(-1.8, abs=0.8)
    assert segment([-0.5, -1.5]).moved == -1.0


def test_scatter_is_the_noise_s_own_variance() -> None:
    """Of 1000 changes by noise alone, about 5 % exceed twice their standard error, and 32 % exceed it once."""
    rng = random.Random(2)
    called = sum(segment([rng.gauss(0, 1) for _ in range(100)]).moved != 0.0 for _ in range(1000))
    assert 25 <= called <= 90


def figure(**parts: object) -> Figure:
    fixed = {"title": "a <b> & c", "x_label": "x", "y_label": "y", "x": (0.0, 10.0), "y": (0.0, 1.0)}
    return Figure(**(fixed | parts))  # type: ignore[arg-type]


def test_places_by_hand() -> None:
    """The frame runs from (68, 246) to (544, 34), y upwards."""
    svg = draw_figure(figure(curves=[Curve("line", [(0, 0), (5, 0.5), (10, 1)])], dots=[Dots("d", [(10, 0)], 1)]))
    assert 'd="M68.0 246.0L306.0 140.0L544.0 34.0"' in svg
    assert '<circle cx="544.0" cy="246.0" r="2.5"/>' in svg


def test_what_lies_outside_is_left_out_and_lifts_the_pen() -> None:
    svg = draw_figure(figure(curves=[Curve("line", [(0, 0), (5, 2), (10, 1)])], dots=[Dots("d", [(11, 0)])]))
    assert 'd="M68.0 246.0M544.0 34.0"' in svg
    assert 'r="2.5"' not in svg


def test_it_is_xml_without_outside_references_and_with_both_schemes() -> None:
    svg = draw_figure(figure(curves=[Curve("<i>", [(0, 0)])], shade=((2.0, 4.0), "here")))
    root = ElementTree.fromstring(svg)
    assert [e.text for e in root.iter() if e.tag.endswith("title")] == ["a <b> & c"]
    assert not re.findall(r"(?:href|src|url\()", svg)
    assert "prefers-color-scheme:dark" in svg
    assert 'x="163.2" y="34" width="95.2" height="212"' in svg


def test_ticks_with_words() -> None:
    svg = draw_figure(figure(x_ticks=[(5.0, "five")]))
    assert '<text class="xtick" x="306.0" y="264">five</text>' in svg


def test_an_axis_without_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="some extent"):
        draw_figure(figure(x=(1.0, 1.0)))
