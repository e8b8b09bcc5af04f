"""Calibration against bins counted by hand and torchmetrics; drift against sums on Python floats."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional import kl_divergence as their_kl_divergence
from torchmetrics.functional.classification import binary_calibration_error

from cwdpo.metrics import jensen_shannon, kl_divergence, reliability, token_ece, total_variation


def by_hand(confidence: list[float], hit: list[bool], num_bins: int) -> float:
    """Sort tokens into bins with loops on Python floats."""
    error = 0.0
    for b in range(num_bins):
        inside = [
            i
            for i, c in enumerate(confidence)
            if b / num_bins <= c < (b + 1) / num_bins or (b == num_bins - 1 and c == 1)
        ]
        if inside:
            sure = sum(confidence[i] for i in inside) / len(inside)
            right = sum(hit[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(sure - right)
    return error


@pytest.mark.parametrize("num_bins", [1, 5, 15])
def test_matches_bins_by_hand(num_bins: int) -> None:
    rng = random.Random(3)
    confidence = [rng.random() for _ in range(500)]
    hit = [rng.random() < c**2 for c in confidence]  # overconfident on purpose
    ours = token_ece(torch.tensor(confidence, dtype=torch.float64), torch.tensor(hit), num_bins=num_bins)
    assert ours.item() == pytest.approx(by_hand(confidence, hit, num_bins), rel=1e-6)


def test_known_value() -> None:
    # bins of width 1/15: 0.97 (2 of 3 right) and 0.50 (1 of 1 right)
    ours = token_ece(torch.tensor([0.97, 0.97, 0.97, 0.5]), torch.tensor([True, True, False, True]))
    assert ours.item() == pytest.approx(0.75 * (0.97 - 2 / 3) + 0.25 * 0.5)


def test_certain_and_right_is_perfect() -> None:
    assert token_ece(torch.ones(7), torch.ones(7, dtype=torch.bool)).item() == 0.0


def test_log_probabilities_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"take \.exp\(\)"):
        token_ece(torch.tensor([-0.1, -2.0]), torch.tensor([True, False]))


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_unselected_tokens_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"confidence\[mask\]"):
        token_ece(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))


def test_equals_torchmetrics() -> None:
    torch.manual_seed(2)
    confidence, hit = torch.rand(400).double(), torch.rand(400) < 0.6  # none is exactly 1: that is its own bin there
    theirs = binary_calibration_error(confidence, hit.long(), n_bins=15, norm="l1")
    assert token_ece(confidence, hit).item() == pytest.approx(theirs.item(), abs=1e-7)


def bins_by_hand(confidence: list[float], hit: list[bool], num_bins: int) -> list[list[float]]:
    found: list[list[float]] = []
    for b in range(num_bins):
        upper = 2 if b == num_bins - 1 else (b + 1) / num_bins
        inside = [i for i, c in enumerate(confidence) if b / num_bins <= c < upper]
        n = len(inside)
        mean = sum(confidence[i] for i in inside) / n if n else 0.0
        found.append([n, mean, sum(hit[i] for i in inside) / n if n else 0.0])
    return found


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_bins_are_those_counted_by_hand_and_give_the_error(num_bins: int) -> None:
    rng = random.Random(5)
    confidence = [*(rng.random() ** 0.3 for _ in range(300)), *[1.0] * 40, 0.0, 0.5]
    hit = [rng.random() < c**2 for c in confidence]
    tensors = torch.tensor(confidence, dtype=torch.float64), torch.tensor(hit)
    found = reliability(*tensors, num_bins=num_bins).tolist()
    for ours, theirs in zip(found, bins_by_hand(confidence, hit, num_bins), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    error = sum(n * abs(sure - right) for n, sure, right in found) / len(confidence)
    assert token_ece(*tensors, num_bins=num_bins).item() == pytest.approx(error, abs=1e-7)
    assert by_hand(confidence, hit, num_bins) == pytest.approx(error, rel=1e-9)


def test_certainty_shares_the_last_bin() -> None:
    # 0.96 and 1.0 stand together: 0.98 sure, half right
    ours = token_ece(torch.tensor([0.96, 1.0]), torch.tensor([True, False]))
    assert ours.item() == pytest.approx(0.48)


def test_bins_refuse_what_the_error_refuses() -> None:
    with pytest.raises(ValueError, match=r"take \.exp\(\)"):
        reliability(torch.tensor([-0.1]), torch.tensor([True]))


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


def test_kl_equals_torchmetrics_and_its_limits() -> None:
    generator = torch.Generator().manual_seed(4)
    p, q = (torch.randn(6, 9, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    theirs = their_kl_divergence(p.exp(), q.exp(), reduction="none")
    assert kl_divergence(p, q).tolist() == pytest.approx(theirs.tolist(), abs=1e-9)
    assert kl_divergence(p, p).tolist() == [0.0] * 6
    one, half = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    assert kl_divergence(one, half).item() == pytest.approx(math.log(2))
    assert kl_divergence(half, one).item() == math.inf
