"""The curriculum's two rules against loops over plain numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.negatives.mixing import LevelReading, auto_level, order_by_level

lbars = st.lists(st.integers(-40, 0).map(lambda tenths: tenths / 8), min_size=1, max_size=7)
quarters = st.integers(0, 4).map(lambda number: number / 4)


def taken_by_hand(values: list[float], quarter: int) -> list[int]:
    """Whole numbers alone: rank r of n stands at 4 r, and the level at quarter * (n - 1)."""
    left = list(range(len(values)))
    rank_of = {i: sum(values[j] < values[i] or (values[j] == values[i] and j < i) for j in left) for i in left}
    taken = []
    while left:
        best = left[0]
        for i in left[1:]:
            far, nearest = (abs(4 * rank_of[k] - quarter * (len(values) - 1)) for k in (i, best))
            if far < nearest or (far == nearest and rank_of[i] < rank_of[best]):
                best = i
        left.remove(best)
        taken.append(best)
    return taken


@pytest.mark.slow
@given(values=lbars, level=quarters)
def test_the_nearest_rank_comes_first(values: list[float], level: float) -> None:
    assert order_by_level(values, level) == taken_by_hand(values, int(4 * level))


def test_limits() -> None:
    assert order_by_level([-3.0, -1.0, -2.0], 0.0) == [0, 2, 1]
    assert order_by_level([-3.0, -1.0, -2.0], 1.0) == [1, 2, 0]
    assert order_by_level([-3.0, -1.0, -2.0], 0.5) == [2, 0, 1]  # the middle one, then of two as near the easier
    assert order_by_level([-3.0, -1.0], 0.5) == [0, 1]
    assert order_by_level([-1.0, -1.0], 0.0) == [0, 1]
    assert order_by_level([-5.0], 0.7) == [0]
    assert order_by_level([], 0.7) == []


def level(*readings: tuple[float, float], tolerance: float = 0.02) -> float:
    return auto_level([LevelReading(*reading) for reading in readings], tolerance=tolerance, growth=0.1, patience=3)


def level_by_hand(readings: list[tuple[int, int]]) -> int:
    """In hundredths of nats and quarters of a level: tolerance 2, growth 10, patience 3."""
    quarter, decided = 0, 0
    for now in range(1, len(readings)):
        chosen, margin = readings[now]
        if chosen < max(earlier for earlier, _ in readings[:now]) - 2:
            quarter, decided = max(quarter - 1, 0), now
        elif margin - readings[decided][1] >= 10 or now - decided == 3:
            quarter, decided = min(quarter + 1, 4), now
    return quarter


@given(st.lists(st.tuples(st.integers(-40, 0), st.integers(-20, 60)), max_size=25))
def test_auto_matches_a_loop_over_whole_numbers(readings: list[tuple[int, int]]) -> None:
    exact = [LevelReading(chosen, margin) for chosen, margin in readings]
    found = auto_level(exact, tolerance=2, growth=10, patience=3)
    assert 4 * found == level_by_hand(readings)


def test_it_begins_with_the_easiest() -> None:
    assert level() == 0
    assert level((-1.0, 5.0)) == 0
    assert level((-1.0, 5.0), (-1.0, 5.05), (-1.0, 5.09)) == 0


def test_what_is_learnt_makes_it_harder() -> None:
    assert level((-1.0, 0.0), (-1.0, 0.125)) == 0.25
    assert level((-1.0, 0.0), (-1.0, 0.125), (-1.0, 0.25), (-1.0, 0.3)) == 0.5  # grown since the last decision alone


def test_a_stall_makes_it_harder_after_its_patience() -> None:
    assert level(*[(-1.0, 0.0)] * 3) == 0
    assert level(*[(-1.0, 0.0)] * 4) == 0.25
    assert level(*[(-1.0, 0.0)] * 6) == 0.25
    assert level(*[(-1.0, 0.0)] * 7) == 0.5


def test_chosen_answers_that_fall_make_it_easier_whatever_the_margin() -> None:
    grown = [(-1.0, 0.0), (-1.0, 0.5), (-1.0, 1.0)]
    assert level(*grown) == 0.5
    assert level(*grown, (-1.015, 1.0)) == 0.5
    assert level(*grown, (-1.03, 9.0)) == 0.25
    assert level(*grown, (-1.03, 9.0), (-1.03, 9.0), (-1.03, 9.0)) == 0
    assert level(*grown, (-1.03, 9.0), tolerance=0.05) == 0.75


def test_it_stays_within_its_ends() -> None:
    assert level(*[(-1.0, float(i)) for i in range(12)]) == 1
    assert level(*[(-1.0 - i, float(i)) for i in range(12)]) == 0


@pytest.mark.parametrize("broken", [(math.nan, 1.0), (-1.0, math.nan), (-math.inf, 1.0)])
def test_a_reading_that_is_no_number_is_passed_over(broken: tuple[float, float]) -> None:
    assert level(broken, (-1.0, 0.0), broken, broken, broken, broken, (-1.0, 0.125)) == 0.25
