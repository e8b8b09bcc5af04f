"""cw_dpo_loss against arithmetic done by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.losses import cw_dpo_loss


def by_hand(delta_w: float, delta_l: float, w_c: float, beta: float) -> float:
    """-log(1 / (1 + e^-z)) on Python floats, arranged so that e^ never overflows."""
    z = beta * (delta_w - w_c * delta_l)
    return math.log1p(math.exp(-abs(z))) + max(-z, 0.0)


def loss(delta_w: float, delta_l: float, w_c: float, beta: float = 0.1) -> float:
    pair = (torch.tensor([v], dtype=torch.float64) for v in (delta_w, delta_l, w_c))
    return cw_dpo_loss(*pair, beta=beta).item()


nats = st.floats(-500, 500)


@settings(deadline=None)
@given(delta_w=nats, delta_l=nats, w_c=st.floats(0, 1), beta=st.floats(0.01, 5))
def test_matches_arithmetic_by_hand(delta_w: float, delta_l: float, w_c: float, beta: float) -> None:
    assert loss(delta_w, delta_l, w_c, beta) == pytest.approx(by_hand(delta_w, delta_l, w_c, beta), rel=1e-9)


def test_known_value() -> None:
    assert loss(2.0, -4.0, 0.5, beta=0.25) == pytest.approx(math.log(1 + 1 / math.e))  # z = 1


def test_step_zero_costs_log_two() -> None:
    assert loss(0.0, 0.0, 0.3) == pytest.approx(math.log(2))


def test_fully_cooled_negative_has_no_pull() -> None:
    rejected = torch.tensor([3.0], requires_grad=True)
    cw_dpo_loss(torch.ones(1), rejected, torch.zeros(1), beta=0.1).sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == 0.0


def test_the_pull_on_the_loser_is_scaled_by_its_weight() -> None:
    """d loss / d Delta_l = beta * w_c * sigmoid(-z), so half the weight pulls by half at the same margin."""
    beta, w_c = 0.4, 0.25
    rejected = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([w_c], dtype=torch.float64)
    cw_dpo_loss(torch.zeros(1, dtype=torch.float64), rejected, weight, beta=beta).sum().backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == pytest.approx(beta * w_c / 2)


def test_gradient_is_exact() -> None:
    torch.manual_seed(0)
    args = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda w, l, c: cw_dpo_loss(w, l, c, beta=0.3), args)  # noqa: E741


@pytest.mark.parametrize("shape", [(2, 7), ()])
def test_per_token_input_is_refused_with_advice(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"AnswerLogprobs\.total"):
        cw_dpo_loss(torch.ones(shape), torch.ones(shape), torch.ones(shape), beta=0.1)
