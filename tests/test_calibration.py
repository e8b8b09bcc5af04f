"""token_ece against bins counted by hand."""

import random

import pytest
import torch

from cwdpo.calibration import token_ece


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
