"""Smoothing and thinning against loops written out by hand."""

import math
import random

import pytest

from cwdpo.report.charts import Segment, Series, finite, smoothed, thinned


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
