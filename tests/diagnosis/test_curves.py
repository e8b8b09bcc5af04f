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


def test_start_end_and_lowest_are_medians() -> None:
    ten = curve(1, 2, 9, 0, 0, -7, -3, -3, 5, 6)
    assert (ten.start, ten.end, ten.lowest) == (
        2,
        5.5,
        (-3.5, 4),
    )  # blocks of two from the end: 5.5, -3, -3.5, 4.5, 1.5
    assert ten.change(0.0, base=1.0).amount == 4.5


def test_differences_are_taken_step_by_step() -> None:
    late = Curve((1, 2, 5), (10.0, 20.0, 50.0))
    assert curve(0, 1, 2).minus(late) == Curve((1, 2), (-9.0, -18.0))
    with pytest.raises(MissingReadingsError):
        curve(0).minus(late)
