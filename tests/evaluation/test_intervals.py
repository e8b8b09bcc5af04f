"""Intervals against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from cwdpo.evaluation.intervals import mean_estimate, statistic_estimate, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (3, 7), (10, 10), (451, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_equals_scipy(successes: int, n: int, level: float) -> None:
    theirs = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    ours = wilson(successes, n, level=level)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == successes / n


def test_a_mean_has_the_interval_that_scipy_gives() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    ours = mean_estimate(values, samples=20_000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.value == values.mean()
    assert ours.n == 80


def test_resamples_without_the_statistic_are_left_out() -> None:
    values = np.array([1.0, 0.0, 0.0])
    found = statistic_estimate(lambda rows: values[rows].sum() or math.nan, 3)
    assert found.low >= 1


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, math.nan])])
def test_what_cannot_be_measured_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_estimate(values)
    with pytest.raises(ValueError, match="not defined"):
        statistic_estimate(lambda rows: math.nan, len(values))


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_of_impossible_counts_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)
