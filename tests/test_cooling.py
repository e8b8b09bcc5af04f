"""cooling_weight and measure_floor against arithmetic done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.batch import Role
from cwdpo.cooling import cooling_weight, measure_floor, pair_share
from cwdpo.errors import ConfigError

nats = st.floats(-50, 0)


def weight(mean_logprob: float, floor: float, temperature: float) -> float:
    return cooling_weight(torch.tensor([mean_logprob], dtype=torch.float64), floor, temperature=temperature).item()


@settings(deadline=None)
@given(mean_logprob=nats, floor=nats, temperature=st.floats(0.05, 10))
def test_matches_arithmetic_by_hand(mean_logprob: float, floor: float, temperature: float) -> None:
    z = (mean_logprob - floor) / temperature
    expected = 1 / (1 + math.exp(-z)) if z > -500 else 0.0
    assert weight(mean_logprob, floor, temperature) == pytest.approx(expected, rel=1e-9, abs=1e-200)


def test_limits() -> None:
    assert weight(-2.0, -2.0, 0.3) == 0.5
    assert weight(-40.0, -2.0, 0.3) < 1e-30  # easy: no push
    assert weight(0.0, -30.0, 0.3) == 1.0  # hard: all of DPO


def test_harder_negatives_weigh_more() -> None:
    weights = cooling_weight(torch.linspace(-6, 0, 20), -2.0, temperature=0.7)
    assert (weights.diff() > 0).all()


def test_smaller_temperature_is_sharper() -> None:
    assert weight(-3.0, -2.0, 0.1) < weight(-3.0, -2.0, 1.0) < 0.5 < weight(-1.0, -2.0, 1.0) < weight(-1.0, -2.0, 0.1)


def test_gradient_is_exact() -> None:
    mean_logprob = torch.tensor([-3.0, -1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: cooling_weight(m, -2.0, temperature=0.5), mean_logprob)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="cooling: null"):
        weight(-1.0, -2.0, temperature)


NONE = torch.empty(0)
LBAR = {
    Role.CHOSEN: torch.tensor([-0.25, -0.75]),
    Role.REJECTED: torch.tensor([-8.0, -4.0, -3.0, -1.0]),
    Role.GENTLE: torch.tensor([-1.5, -0.5]),
}


@pytest.mark.parametrize(
    ("rule", "without", "expected"),
    [
        ("chosen", Role.GENTLE, -0.5),
        ("chosen - 2 tau", Role.GENTLE, -1.1),
        ("gentle", None, -1.0),
        ("gentle - 2 tau", None, -1.6),
        ("gentle", Role.GENTLE, -4.0),  # nothing gentle: all rejected answers
        ("gentle-0.5tau", Role.GENTLE, -4.15),
        ("mean", None, -4.0),
        ("quantile:0.5", None, -3.5),
        ("quantile:0.25 - 1 tau", None, -5.3),
        (-2.25, Role.REJECTED, -2.25),
    ],
)
def test_floor_rules(rule: float | str, without: Role | None, expected: float) -> None:
    lbar = {role: NONE if role is without else values for role, values in LBAR.items()}
    assert measure_floor(rule, lbar=lbar, temperature=0.3) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["mean", "gentle - 1 tau", "quantile:0.5"])
def test_floor_needs_answers(rule: str) -> None:
    with pytest.raises(ConfigError, match="no training rows whose answers could be measured"):
        measure_floor(rule, lbar={Role.CHOSEN: LBAR[Role.CHOSEN], Role.REJECTED: NONE}, temperature=0.3)


@pytest.mark.parametrize("rule", ["median", "chosen + 2 tau", "chosen - tau", "quantile:1 - 2 tau"])
def test_unknown_rule(rule: str) -> None:
    with pytest.raises(ConfigError, match="write `chosen - 2 tau`"):
        measure_floor(rule, lbar=LBAR, temperature=0.3)


def test_easy_pairs_can_be_dropped_or_scaled_as_a_whole() -> None:
    weights = torch.tensor([0.0, 0.049, 0.05, 0.8])
    assert pair_share(weights).tolist() == [1, 1, 1, 1]
    assert pair_share(weights, drop_below=0.05).tolist() == [0, 0, 1, 1]
    assert pair_share(weights, scales="pair").tolist() == weights.tolist()
    assert pair_share(weights, scales="pair", drop_below=0.05).tolist() == [0, 0, *weights.tolist()[2:]]
