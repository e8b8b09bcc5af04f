"""G of every loss against autograd through the package's own losses, and numbers by hand."""

import math

import pytest
import torch
from torch import Tensor

from cwdpo.analysis.theory import cw_dpo_pulls, loser_push, sft_pull, token_residual
from cwdpo.cooling import cooling_weight
from cwdpo.losses import cw_dpo_loss

W, L, V = 3, 5, 7
"""Tokens of the winner, of the loser, and the vocabulary."""

BETA, FLOOR, TAU = 0.7, -1.8, 0.4


def answers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits ``(W, V)`` and ``(L, V)``, and the tokens."""
    draw = torch.Generator().manual_seed(0)
    winner = torch.randn(W, V, generator=draw, dtype=torch.float64, requires_grad=True)
    loser = torch.randn(L, V, generator=draw, dtype=torch.float64, requires_grad=True)
    return winner, loser, torch.tensor([0, 3, 6]), torch.tensor([1, 1, 2, 5, 4])


def total(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1).gather(1, targets[:, None]).sum()[None]


def test_residual_of_one_token_by_hand() -> None:
    found = token_residual(torch.tensor([[math.log(2.0), 0.0, 0.0]]), torch.tensor([1]))
    assert found[0].tolist() == pytest.approx([0.5, 0.25 - 1, 0.25])


def test_sft_residual_is_the_gradient_of_mean_nll() -> None:
    winner, _, targets, _ = answers()
    (-total(winner, targets) / W).backward()
    expected = sft_pull(torch.tensor([W])) * token_residual(winner.detach(), targets)
    torch.testing.assert_close(winner.grad, expected, check_dtype=False)


@pytest.mark.parametrize("kind", ["dpo", "cooled", "flowing"])
def test_dpo_residuals_are_the_gradient_of_the_loss(kind: str) -> None:
    winner, loser, y_w, y_l = answers()
    chosen = total(winner, y_w) + 4.0
    log_l = total(loser, y_l)
    rejected = log_l + 9.0
    weight = torch.ones(1, dtype=torch.float64)
    flow: Tensor | float = 0.0
    if kind != "dpo":
        weight = cooling_weight(log_l / L, FLOOR, temperature=TAU)
        weight = weight if kind == "flowing" else weight.detach()
    if kind == "flowing":
        flow = (weight * (1 - weight) / (TAU * L)).detach()
    cw_dpo_loss(chosen, rejected, weight, beta=BETA).sum().backward()
    up, down = cw_dpo_pulls(chosen.detach(), rejected.detach(), weight.detach(), beta=BETA, flow=flow)
    torch.testing.assert_close(winner.grad, up * token_residual(winner.detach(), y_w))
    torch.testing.assert_close(loser.grad, down * token_residual(loser.detach(), y_l))


def test_pulls_by_hand() -> None:
    """Delta_w = 1, Delta_l = -2, w_c = 1/2, beta = 0.3: the margin is 0.3 (1 + 1) = 0.6."""
    up, down = cw_dpo_pulls(torch.tensor([1.0]), torch.tensor([-2.0]), torch.tensor([0.5]), beta=0.3)
    unsure = 1 / (1 + math.exp(0.6))
    assert up.item() == pytest.approx(0.3 * unsure)
    assert down.item() == pytest.approx(-0.3 * 0.5 * unsure)


def test_a_flowing_weight_can_turn_the_loser_round() -> None:
    """DESIGN choice `detach: false` raises the loser where flow * |Delta_l| > w_c."""
    args = (torch.zeros(1), torch.tensor([-20.0]), torch.tensor([0.1]))
    assert cw_dpo_pulls(*args, beta=0.1)[1] < 0
    assert cw_dpo_pulls(*args, beta=0.1, flow=0.02)[1] > 0


@pytest.mark.parametrize("lbar", [-9.0, -3.0, -0.2])
def test_loser_push_by_hand(lbar: float) -> None:
    length, beta, start, weight = 4, 0.2, -1.0, 0.3
    found = loser_push(
        torch.tensor([lbar], dtype=torch.float64),
        torch.tensor([weight]),
        start=start,
        length=length,
        beta=beta,
        chosen_logratio=1.5,
    )
    unsure = 1 / (1 + math.exp(beta * (1.5 - weight * length * (lbar - start))))
    p = math.exp(lbar)
    logits = [math.log(p), math.log(1 - p)]  # two tokens: the loser's and the one with all the rest
    squares = (math.exp(logits[0]) - 1) ** 2 + math.exp(logits[1]) ** 2
    assert found.item() == pytest.approx((beta * unsure * weight) ** 2 * squares, rel=1e-6)


def test_cooling_closes_the_vulnerable_region_and_leaves_hard_negatives_alone() -> None:
    """At the first step, beta = 0.1 and 1 - a = 1/2: DPO pushes an easy loser with 2 (0.05)^2 (1 - e^-5)^2."""
    lbar = torch.tensor([-5.0, -0.7])
    hot = loser_push(lbar, torch.ones(2), start=lbar, length=10, beta=0.1)
    cooled = loser_push(lbar, cooling_weight(lbar, -2.0, temperature=0.3), start=lbar, length=10, beta=0.1)
    assert hot[0].item() == pytest.approx(0.005 * (1 - math.exp(-5)) ** 2)
    assert cooled[0] / hot[0] < 1e-8
    assert cooled[1] / hot[1] == pytest.approx(1.0, abs=0.05)


def test_a_loser_that_fell_is_pushed_less_by_dpo_too() -> None:
    """1 - a = sigmoid(beta L (lbar - start)) = sigmoid(-3) against 1/2."""
    lbar = torch.tensor([-5.0])
    first, fallen = (loser_push(lbar, torch.ones(1), start=s, length=10, beta=0.1) for s in (-5.0, -2.0))
    assert (fallen / first).item() == pytest.approx((2 / (1 + math.exp(3.0))) ** 2, rel=1e-5)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="length 0"):
        loser_push(torch.zeros(1), torch.ones(1), start=-1.0, length=0, beta=0.1)
