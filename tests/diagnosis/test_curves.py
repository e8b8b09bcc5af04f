"""Curves: what is a change and what is noise."""

import random

import pytest

from cwdpo.diagnosis.history import Curve, MissingReadingsError


def curve(*values: float) -> Curve:
    return Curve(tuple(range(len(values))), values)


def noisy(n: int, seed: int, end: float = 0.0) -> Curve:
    rng = random.Random(seed)
    return curve(*(end * i / (n - 1) + rng.gauss(0, 1) for i in range(n)))


@pytest.mark.parametrize("n", [10, 25, 100])
def test_white_noise_goes_nowhere(n: int) -> None:
    changes = [noisy(n, seed).change(4.0) for seed in range(300)]
    assert sum(change.rose(0.0) or change.fell(0.0) for change in changes) <= 6  # short curves know their noise badly


def test_a_trend_in_noise_is_found() -> None:
    assert all(noisy(100, seed, end=-6.0).change(4.0).fell(3.0) for seed in range(50))
    assert all(noisy(100, seed, end=6.0).change(4.0).rose(3.0) for seed in range(50))


def test_noise_is_that_of_one_reading() -> None:
    assert noisy(2000, 0, end=50.0).noise == pytest.approx(1.0, rel=0.1)
    assert curve(0, -1, -2, -3, -4, -5).noise == 0.0


def test_of_few_readings_two_must_agree() -> None:
    assert not curve(0, 0, 0, -5).change(4.0).fell(1.0)
    assert curve(0, 0, -5, -6).change(4.0).fell(5.0)
    assert not curve(0, 0, -5, -6).change(4.0).fell(5.5)
    assert curve(0, 0, -5, -6).change(4.0).amount == -6


def test_start_and_end_are_medians() -> None:
    ten = curve(1, 2, 9, 0, 0, -7, -3, -3, 5, 6)
    assert (ten.start, ten.end) == (2, 5.5)
    assert ten.change(0.0, base=1.0).amount == 4.5


def test_differences_are_taken_step_by_step() -> None:
    late = Curve((1, 2, 5), (10.0, 20.0, 50.0))
    assert curve(0, 1, 2).minus(late) == Curve((1, 2), (-9.0, -18.0))
    with pytest.raises(MissingReadingsError):
        curve(0).minus(late)


def rise_and_fall(n: int, seed: int, noise: float) -> Curve:
    """Up by 8 in the first third, down by 12 in the rest."""
    rng = random.Random(seed)
    third = n // 3
    shape = [8 * i / third if i <= third else 8 - 12 * (i - third) / (n - 1 - third) for i in range(n)]
    return curve(*(value + rng.gauss(0, noise) for value in shape))


def test_a_fall_counts_from_the_best_level() -> None:
    drop = curve(0, 4, 8, 8, 8, 7, 6, 5, 4).drop(2.0, 4.0, base=0.0)
    assert drop is not None
    # the last reading may be an outlier, so what it shares with the one before is believed
    assert (drop.best, drop.end, drop.since) == (8, 5, 4)
    assert drop.amount == 3
    assert curve(0, 4, 8, 8, 8, 7, 6, 5, 4).drop(3.5, 4.0, base=0.0) is None


def test_a_fall_is_judged_while_it_goes_on_and_is_over_when_it_came_back() -> None:
    path = (0, 4, 8, 8, 8, 7, 6, 5, 4, 4, 5, 6, 7, 8, 8)
    named = [n for n in range(5, 16) if curve(*path[:n]).drop(2.0, 4.0, base=0.0)]
    assert named == [8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize("outlier", [30.0, -30.0])
@pytest.mark.parametrize("place", [0, 7, 14])
def test_one_outlier_is_no_fall(outlier: float, place: int) -> None:
    values = [8.0 - 0.01 * (i % 3) for i in range(15)]
    values[place] += outlier
    if place or outlier < 0:  # the first reading alone shows the start
        assert curve(*values).drop(1.0, 4.0) is None


def test_the_start_is_a_level_too() -> None:
    falls = [-2.0, -2.1, -1.9, -2.0, -2.05, -1.95]
    assert curve(*falls).drop(1.0, 4.0) is None
    drop = curve(*falls).drop(1.0, 4.0, base=0.0)
    assert drop is not None
    assert (drop.best, drop.since) == (0.0, 0)


@pytest.mark.parametrize("n", [8, 15, 40, 150])
def test_noise_alone_is_no_fall(n: int) -> None:
    seeds = range(900 // n)
    assert sum(noisy(n, seed).drop(0.5, 4.0) is not None for seed in seeds) <= 1
    rises = [curve(*(min(8.0, 24 * i / n) + random.Random(seed * 999 + i).gauss(0, 1) for i in range(n)))
             for seed in seeds]  # fmt: skip
    assert sum(one.drop(0.5, 4.0, base=0.0) is not None for one in rises) <= 1


@pytest.mark.parametrize(("n", "noise"), [(30, 0.3), (60, 1.0), (200, 3.0)])
def test_falls_in_noise_are_found(n: int, noise: float) -> None:
    drops = [rise_and_fall(n, seed, noise).drop(1.0, 4.0, base=0.0) for seed in range(30)]
    assert all(drop is not None for drop in drops)
    begins = sorted(drop.since / n for drop in drops if drop is not None)
    assert 0.25 < begins[15] < 0.5


def test_noise_that_grows_does_not_hide_an_early_best_level() -> None:
    quiet, loud = [0, 2, 4, 6, 7, 7.5, 7.6], random.Random(1)
    values = [*quiet, *(-2 + loud.gauss(0, 2.5) for _ in range(13))]
    drop = curve(*values).drop(2.0, 4.0, base=0.0)
    assert drop is not None
    assert drop.best > 6


def test_slow_noise_counts_as_noise() -> None:
    def wandering(seed: int) -> Curve:
        rng, level, values = random.Random(seed), 0.0, []
        for _ in range(200):
            level = 0.6 * level + 0.8 * rng.gauss(0, 1)
            values.append(level)
        return curve(*values)

    assert sum(wandering(seed).drop(0.5, 4.0) is not None for seed in range(20)) <= 3


def test_means_until_a_step() -> None:
    six = Curve((0, 10, 20, 30, 40, 50), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    assert six.mean_until(30, 2) == 2.5
    assert six.mean_until(35, 1) == 3.0
    assert six.mean_until(None, 1) == 5.0
    assert six.since(20).values == (2.0, 3.0, 4.0, 5.0)
    assert six.since(99).values == (5.0,)
