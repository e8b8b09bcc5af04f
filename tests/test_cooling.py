"""cooling_weight and measure_floor against arithmetic done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.cooling import cooling_weight, measure_floor
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


REJECTED, GENTLE, NONE = torch.tensor([-8.0, -4.0, -3.0, -1.0]), torch.tensor([-1.5, -0.5]), torch.empty(0)


@pytest.mark.parametrize(
    ("rule", "gentle", "expected"),
    [
        ("gentle", GENTLE, -1.0),
        ("gentle", NONE, -4.0),  # nothing gentle: all negatives
        ("mean", GENTLE, -4.0),
        ("quantile:0.5", GENTLE, -3.5),
        ("quantile:0.25", GENTLE, -5.0),
        (-2.25, NONE, -2.25),
    ],
)
def test_floor_rules(rule: float | str, gentle: torch.Tensor, expected: float) -> None:
    assert measure_floor(rule, rejected=REJECTED, gentle=gentle) == pytest.approx(expected)


def test_floor_needs_negatives() -> None:
    with pytest.raises(ConfigError, match="no negatives to measure"):
        measure_floor("mean", rejected=NONE, gentle=GENTLE)


def test_unknown_rule() -> None:
    with pytest.raises(ConfigError, match=r"`quantile:0\.5` or nats"):
        measure_floor("median", rejected=REJECTED, gentle=GENTLE)
