"""Readings cost at most a tenth of the steps between them, whatever either costs; with a clock made of numbers."""

import pytest

from cwdpo.probes.schedule import SHARE, Schedule, next_reading


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def simulate(
    steps: int, step_seconds: float, reading_seconds: float, *, every: int | None = None
) -> tuple[list[int], Schedule]:
    """Steps with a reading, as the trainer's callback asks for them."""
    clock = Clock()
    schedule = Schedule(every, clock=clock)
    schedule.begin(0, steps)
    taken = []

    def read(step: int) -> None:
        with schedule.reading(step):
            clock.now += reading_seconds
        taken.append(step)

    read(0)
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if schedule.is_due(step):
            read(step)
    return taken, schedule


@pytest.mark.parametrize("steps", [50, 120, 1000])
@pytest.mark.parametrize("ratio", [0.01, 0.5, 2.0, 2.4])
def test_cost_is_bounded(steps: int, ratio: float) -> None:
    taken, schedule = simulate(steps, 0.3, 0.3 * ratio)
    assert taken[0] == 0
    assert taken[-1] == steps
    assert schedule.share <= SHARE + 1e-9
    assert schedule.spent == pytest.approx(len(taken) * 0.3 * ratio)
    most = min(SHARE * steps / ratio, 41)
    assert len(taken) >= 0.6 * most - 1  # and the budget is used


def test_a_stage_too_short_for_its_budget_has_the_first_and_the_last_reading() -> None:
    taken, _ = simulate(30, 1.0, 5.0)
    assert taken == [0, 30]


def test_costlier_readings_than_the_first_are_fewer_from_then_on() -> None:
    clock = Clock()
    schedule = Schedule(None, clock=clock)
    schedule.begin(0, 1000)
    taken = []
    for step in range(1001):
        clock.now += 1.0 if step else 0.0
        if step == 0 or schedule.is_due(step):
            with schedule.reading(step):
                clock.now += 0.5 if step == 0 else 8.0
            taken.append(step)
    assert schedule.share <= SHARE + 1e-9
    assert len(taken) < 14


def test_preparation_is_paid_for_too() -> None:
    clock = Clock()
    schedule = Schedule(None, clock=clock)
    schedule.begin(0, 100)
    with schedule.preparing():
        clock.now += 9.0
    with schedule.reading(0):
        clock.now += 0.5
    due = []
    for step in range(1, 101):
        clock.now += 1.0
        if schedule.is_due(step):
            due.append(step)
            with schedule.reading(step):
                clock.now += 0.5
    assert due == [100]
    assert schedule.share == pytest.approx(0.1)


def test_what_is_owed_at_the_end_is_paid_for_too() -> None:
    """Readings of 0.5 s and 5 s after the last one, out of a tenth of 200 s: (20 - 5) / 0.5 = 30 readings at most."""
    clock = Clock()
    schedule = Schedule(None, clock=clock)
    schedule.begin(0, 200)
    with schedule.reading(0):
        clock.now += 0.5
    schedule.owed = 5.0
    taken = 1
    for step in range(1, 201):
        clock.now += 1.0
        if schedule.is_due(step):
            taken += 1
            with schedule.reading(step):
                clock.now += 0.5
    with schedule.preparing(again_at_end=True):
        clock.now += 5.0
    assert schedule.owed == pytest.approx(5.0 + 5.0)
    assert schedule.spent == pytest.approx(taken * 0.5 + 5.0)
    assert 20 <= taken <= 30
    assert schedule.share <= SHARE + 1e-9


def test_given_steps_are_kept() -> None:
    taken, schedule = simulate(23, 0.1, 10.0, every=5)
    assert taken == [0, 5, 10, 15, 20, 23]
    assert schedule.spent == pytest.approx(60)


def test_a_resumed_stage_counts_from_where_it_goes_on() -> None:
    assert next_reading(50, 100, first_step=50, step_seconds=1.0, reading_seconds=1.0, spent=0.0) == 63
    assert next_reading(95, 100, first_step=50, step_seconds=1.0, reading_seconds=1.0, spent=4.0) == 100


def test_ranks_take_the_first_ones_plan() -> None:
    clock = Clock()
    schedule = Schedule(None, clock=clock, agree=lambda step: 7)
    schedule.begin(0, 100)
    with schedule.reading(0):
        clock.now += 1e-3
    for step in range(1, 7):
        clock.now += 1.0
        assert not schedule.is_due(step)
    assert schedule.is_due(7)
