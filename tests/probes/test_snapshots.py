"""The best reading: the widest margin that the chosen answers did not pay for."""

import math
from typing import Any

import pytest

from cwdpo.probes.snapshots import BestReading, SafestReading, margin


def reading(chosen: float, gentle: float | None = None, rejected: float | None = None) -> list[dict[str, Any]]:
    found = {"chosen": chosen, "rejected": rejected, "gentle": gentle}
    return [{"group": group, "mean_logprob": mean} for group, mean in found.items() if mean is not None]


def best_of(readings: list[list[dict[str, Any]]], tolerance: float = 0.02) -> tuple[int | None, list[bool]]:
    best = BestReading(tolerance)
    saved = [best.update(step, lines) for step, lines in enumerate(readings)]
    return best.step, saved


def test_margin_is_to_the_hardest_negatives() -> None:
    assert margin(reading(-1.0, gentle=-1.5, rejected=-4.0)) == 0.5
    assert margin(reading(-1.0, rejected=-4.0)) == 3.0
    assert margin(reading(-1.0)) == -1.0


@pytest.mark.parametrize(
    ("readings", "step"),
    [
        ([reading(-1.0, -1.5), reading(-0.9, -1.6), reading(-0.91, -1.8)], 2),  # both grow
        ([reading(-1.0, -1.5), reading(-1.01, -1.9), reading(-1.2, -3.0)], 1),  # the last margin is bought by falling
        ([reading(-1.0, -1.5), reading(-0.8, -1.1), reading(-0.9, -1.8)], 1),  # a new highest bars the wider old one
        ([reading(-1.0), reading(-0.7), reading(-0.8)], 1),  # no negatives: the likeliest chosen answers
        ([reading(-1.0, -1.5), reading(-1.0, -1.5)], 0),  # the first of equals
    ],
)
def test_the_rule(readings: list[list[dict[str, Any]]], step: int) -> None:
    assert best_of(readings)[0] == step


def test_tolerance_is_what_the_chosen_answers_may_lose() -> None:
    falling = [reading(-1.0, -1.5), reading(-1.05, -2.0)]
    assert best_of(falling, 0.02) == (0, [True, False])
    assert best_of(falling, 0.06) == (1, [True, True])


@pytest.mark.parametrize(
    ("levels", "step"),
    [
        ([-1.0, -1.01, -1.2], 0),  # it only fell: where it began
        ([-1.0, -0.8, -0.9, -0.7001, -0.8], 3),
        ([-1.0, -0.8, -0.8], 1),  # the first of equals
        ([math.nan, -2.0, math.nan, None], 1),
        ([None, math.nan], None),
    ],
)
def test_the_safest_reading_has_the_likeliest_chosen_answers(levels: list[float | None], step: int | None) -> None:
    safest = SafestReading()
    for at, level in enumerate(levels):
        safest.update(at, [{"group": "gentle", "mean_logprob": 0.0}, {"group": "chosen", "mean_logprob": level}])
    assert safest.step == step


@pytest.mark.parametrize("broken", [math.nan, None])
def test_a_reading_that_is_no_number_is_never_the_best(broken: float | None) -> None:
    spoiled: list[Any] = [{"group": "chosen", "mean_logprob": broken}, {"group": "gentle", "mean_logprob": -1.0}]
    margin_lost: list[Any] = [{"group": "chosen", "mean_logprob": -0.1}, {"group": "gentle", "mean_logprob": broken}]
    assert best_of([spoiled, reading(-1.0, -1.5), spoiled, margin_lost]) == (1, [False, True, False, False])
