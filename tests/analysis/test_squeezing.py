"""Squeezing on a handful of logits, against arithmetic on Python floats."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cwdpo.analysis.theory import cw_dpo_pulls, push_down, push_down_repeatedly, token_residual
from cwdpo.cooling import cooling_weight

DOMINATED = [0.7, 0.2, 0.09, 0.01]
"""One token has most of the mass; the last is improbable."""


def by_hand(probs: list[float], target: int, step: float) -> list[float]:
    """One step on the logits ln p, then a softmax, all in floats."""
    logits = [math.log(p) - step * ((i == target) - p) for i, p in enumerate(probs)]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def after(probs: list[float], target: int, step: float, weight: float = 1.0) -> list[float]:
    logprobs = torch.tensor(probs, dtype=torch.float64).log()
    found: list[float] = push_down(logprobs, target, step=step, weight=weight).exp().tolist()
    return found


def simulated(logits: torch.Tensor, target: int, step: float) -> torch.Tensor:
    """What a training step does: the loss is the target's log-prob, and autograd finds its gradient."""
    z = logits.clone().requires_grad_()
    optimiser = torch.optim.SGD([z], lr=step)
    z.log_softmax(dim=0)[target].backward()
    optimiser.step()
    return z.detach().log_softmax(dim=0)


@settings(deadline=None)
@given(masses=st.lists(st.floats(0.001, 1), min_size=2, max_size=6), step=st.floats(0.01, 5), target=st.integers(0, 5))
def test_closed_form_is_arithmetic_by_hand_and_a_simulated_step(masses: list[float], step: float, target: int) -> None:
    assume(target < len(masses))
    probs = [mass / sum(masses) for mass in masses]
    found = after(probs, target, step)
    assert found == pytest.approx(by_hand(probs, target, step), rel=1e-9)
    step_taken = simulated(torch.tensor(probs, dtype=torch.float64).log() + 3.0, target, step)
    assert found == pytest.approx(step_taken.exp().tolist(), rel=1e-9)


@pytest.mark.parametrize("step", [0.01, 1.0, 20.0])
def test_the_argmax_gains_and_everything_else_loses(step: float) -> None:
    found = after(DOMINATED, 3, step)
    assert found[0] > DOMINATED[0]
    assert all(now < before for now, before in zip(found[1:], DOMINATED[1:], strict=True))


@settings(deadline=None)
@given(masses=st.lists(st.floats(0.001, 1), min_size=3, max_size=6), step=st.floats(0.01, 5))
def test_whatever_the_distribution_the_argmax_gains_and_the_target_loses(masses: list[float], step: float) -> None:
    probs = sorted((mass / sum(masses) for mass in masses), reverse=True)
    before = torch.tensor(probs, dtype=torch.float64).log()
    gains = push_down(before, len(probs) - 1, step=step) > before
    assume(probs[0] > probs[-1] + 1e-6)
    assert gains[0]
    assert not gains[-1]


@pytest.mark.parametrize("probs", [[0.5, 0.3, 0.15, 0.05], [0.3, 0.29, 0.28, 0.13], [0.4, 0.39, 0.2, 0.01], DOMINATED])
def test_who_gains_by_a_small_step(probs: list[float]) -> None:
    """pi_i > sum_j pi_j^2 - pi_l: near-ties of the argmax gain too."""
    bar = sum(p * p for p in probs) - probs[-1]
    expected = [p > bar for p in probs[:-1]] + [False]
    before = torch.tensor(probs, dtype=torch.float64).log()
    assert (push_down(before, 3, step=1e-4) > before).tolist() == expected


def test_pushing_a_likely_answer_down_spreads_its_mass() -> None:
    """No squeezing where the answer pushed down is the argmax: what DPO is for."""
    found = after([0.7, 0.2, 0.1], 0, 1.0)
    assert found[0] < 0.7
    assert found[1] > 0.2
    assert found[2] > 0.1


def test_cooling_removes_it_in_proportion() -> None:
    moved = [after(DOMINATED, 3, 1.0, weight)[0] - DOMINATED[0] for weight in (1.0, 0.1, 0.01, 0.0)]
    assert moved[0] > moved[1] > moved[2] > moved[3] == pytest.approx(0.0, abs=1e-15)
    assert moved[2] / moved[1] == pytest.approx(0.1, rel=0.05)


def test_cooled_pushes_weigh_themselves() -> None:
    start = torch.tensor(DOMINATED, dtype=torch.float64).log()
    path = push_down_repeatedly(start, 3, step=0.5, num_steps=2, floor=-3.0, temperature=0.5)
    probs = DOMINATED
    for row in path[1:]:
        weight = 1 / (1 + math.exp(-(math.log(probs[3]) + 3.0) / 0.5))
        probs = by_hand(probs, 3, 0.5 * weight)
        assert row.exp().tolist() == pytest.approx(probs, rel=1e-9)


def test_two_hundred_pushes_with_and_without_cooling() -> None:
    start = torch.tensor(DOMINATED, dtype=torch.float64).log()
    hot = push_down_repeatedly(start, 3, step=0.5, num_steps=200)[-1]
    cooled = push_down_repeatedly(start, 3, step=0.5, num_steps=200, floor=-2.0, temperature=0.3)[-1]
    assert hot[0].exp() > 0.999
    assert hot[1] < start[1] - 5
    assert cooled[0].exp() == pytest.approx(0.7, abs=0.02)


def test_in_one_context_dpo_does_not_squeeze_at_all() -> None:
    """Where winner and loser are predicted at one place, both residuals hold the same pi, and DPO's cancels."""
    z = torch.tensor([DOMINATED], dtype=torch.float64).log()
    winner, loser = torch.tensor([1]), torch.tensor([3])
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for weight, left_over in ((one, 0.0), (one / 4, 0.75)):
        up, down = cw_dpo_pulls(zero, zero, weight, beta=2.0)
        gradient = (up * token_residual(z, winner) + down * token_residual(z, loser))[0]
        on_others = [left_over * p for p in (DOMINATED[0], DOMINATED[2])]  # beta (1 - a) is 1
        assert gradient[[0, 2]].tolist() == pytest.approx(on_others, abs=1e-12)


def test_weight_of_an_easy_negative_is_nothing() -> None:
    weight = cooling_weight(torch.tensor(math.log(0.01)), -2.0, temperature=0.3).item()
    assert after(DOMINATED, 3, 1.0, weight) == pytest.approx(DOMINATED, abs=2e-4)


@pytest.mark.parametrize(("target", "step"), [(4, 1.0), (-1, 1.0), (0, 0.0)])
def test_nonsense_is_refused(target: int, step: float) -> None:
    with pytest.raises(ValueError, match=r"must be > 0|expected \(V,\)"):
        after(DOMINATED, target, step)
