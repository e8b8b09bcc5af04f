"""Drift against sums on Python floats."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.metrics import jensen_shannon, total_variation

weights = st.lists(st.floats(0.01, 1), min_size=3, max_size=3)


def normalised(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


@settings(deadline=None)
@given(weights, weights)
def test_matches_sums_by_hand(first: list[float], second: list[float]) -> None:
    p, q = normalised(first), normalised(second)
    log_p, log_q = (torch.tensor(values, dtype=torch.float64).log() for values in (p, q))
    tv = sum(max(a - b, 0.0) for a, b in zip(p, q, strict=True))  # the other definition: mass that must move
    js = -sum((a + b) / 2 * math.log((a + b) / 2) for a, b in zip(p, q, strict=True))  # H(m) - (H(p) + H(q)) / 2
    js += sum(a * math.log(a) + b * math.log(b) for a, b in zip(p, q, strict=True)) / 2
    assert total_variation(log_p, log_q).item() == pytest.approx(tv, abs=1e-12)
    assert jensen_shannon(log_p, log_q).item() == pytest.approx(js, abs=1e-12)


def test_disjoint_distributions_reach_the_limits() -> None:
    p, q = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert total_variation(p, q).item() == 1.0
    assert jensen_shannon(p, q).item() == pytest.approx(math.log(2))


def test_every_token_keeps_its_own_value() -> None:
    same, other = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    policy, reference = torch.stack([same, other]).log()[None], torch.stack([same, same]).log()[None]
    assert total_variation(policy, reference)[0].tolist() == pytest.approx([0.0, 0.4])
    assert jensen_shannon(policy, reference)[0, 0].item() == 0.0


def test_different_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="same answers"):
        total_variation(torch.zeros(2, 3), torch.zeros(2, 4))
