"""Intervals against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from cwdpo.evaluation.intervals import (
    Estimate,
    Paired,
    jackknife_estimate,
    mean_estimate,
    paired_estimate,
    statistic_estimate,
    wilson,
)


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


def share(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_sums_have_the_interval_of_the_same_resamples() -> None:
    rng = np.random.default_rng(3)
    model, base = (np.stack([rng.random(40), rng.integers(0, 3, 40)], axis=1) for _ in range(2))
    found = paired_estimate(share, model, base, samples=600, seed=5)

    def of(sums: np.ndarray) -> Estimate:
        return statistic_estimate(lambda rows: float(share(sums[rows].sum(axis=0))), 40, samples=600, seed=5)

    assert found.model == pytest.approx(of(model))
    assert found.base == pytest.approx(of(base))
    difference = statistic_estimate(
        lambda rows: float(share(model[rows].sum(axis=0)) - share(base[rows].sum(axis=0))), 40, samples=600, seed=5
    )
    assert found.difference == pytest.approx(difference)
    assert paired_estimate(share, model, samples=600, seed=5).model == pytest.approx(of(model))


def test_a_paired_difference_has_the_interval_that_scipy_gives() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=60)
    after = before + rng.normal(0.3, 0.2, size=60)
    ones = np.ones(60)
    found = paired_estimate(share, np.stack([after, ones], axis=1), np.stack([before, ones], axis=1), samples=20_000)
    theirs = stats.bootstrap(
        (after, before),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.difference is not None
    assert (found.difference.low, found.difference.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert found.beyond_chance
    assert not np.isclose(found.model.low - found.base.high, found.difference.low)  # pairing makes it narrower


def test_what_touches_zero_may_be_chance() -> None:
    some = Estimate(1.0, 0.5, 1.5, 9)
    assert Paired(some).beyond_chance is None
    cases = [(0.1, 1.0, True), (-1.0, -0.1, True), (0.0, 1.0, False), (-1.0, 0.0, False), (-1.0, 1.0, False)]
    for low, high, beyond in [*cases, (5e-5, 6e-5, False), (-6e-5, -5e-5, False)]:
        assert Paired(some, some, Estimate(0.1, low, high, 9)).beyond_chance is beyond


def test_sums_that_give_no_number_are_refused() -> None:
    with pytest.raises(ValueError, match="not defined on these 0 rows"):
        paired_estimate(share, np.zeros((0, 2)))
    with pytest.raises(ValueError, match="not defined on these 2 rows"):
        paired_estimate(share, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not defined on these 2 rows"):
        paired_estimate(share, np.array([[1.0, 0.0], [1.0, 0.0]]))
    some = paired_estimate(share, np.array([[1.0, 0.0], [1.0, 1.0]]))  # a resample of the first row alone is left out
    assert (some.model.value, some.model.low, some.model.high) == (2, 1, 2)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    without = (values.sum() - values) / 29
    found = jackknife_estimate(values.mean(), without, level=0.9)
    reach = stats.norm.ppf(0.95) * stats.sem(values)
    assert found == pytest.approx((values.mean(), values.mean() - reach, values.mean() + reach, 30))
    with pytest.raises(ValueError, match="at least two"):
        jackknife_estimate(1.0, np.array([1.0]))
