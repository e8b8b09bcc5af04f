"""A, and the product A K G on a linear model, where every Jacobian is known."""

import pytest
import torch

from cwdpo.analysis.theory import (
    apply_belief_geometry,
    belief_geometry,
    contract,
    mean_logprob_direction,
    token_residual,
)

DRAW = torch.Generator().manual_seed(1)
X_O, X_U = torch.randn(2, 3, generator=DRAW).double(), torch.randn(4, 3, generator=DRAW).double()
THETA = torch.randn(5, 3, generator=DRAW).double()
Y_O, Y_U = torch.tensor([0, 4]), torch.tensor([1, 1, 3, 2])


def test_belief_geometry_is_the_jacobian_of_log_softmax() -> None:
    logits = torch.randn(5, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.autograd.functional.jacobian(lambda z: z.log_softmax(dim=-1), logits)
    torch.testing.assert_close(belief_geometry(logits[None])[0], expected)


def test_applying_it_is_multiplying_by_it() -> None:
    logits, change = X_O @ THETA.T, torch.ones(2, 5).double().cumsum(dim=1) ** 2
    expected = torch.stack([a @ c for a, c in zip(belief_geometry(logits), change, strict=True)])
    torch.testing.assert_close(apply_belief_geometry(logits, change), expected)
    picked = expected.gather(1, Y_O[:, None]).mean()
    torch.testing.assert_close((mean_logprob_direction(logits, Y_O) * change).sum(), picked)


def lbar(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ theta.T).log_softmax(dim=-1).gather(1, y[:, None]).mean()


def test_a_k_g_of_a_linear_model() -> None:
    """z_t = theta x_t, so K[t, v, s, w] = <x_t, x_s> where v = w and 0 elsewhere."""
    kernel = torch.einsum("ti,si,vw->tvsw", X_O, X_U, torch.eye(5).double())
    residual = token_residual(X_U @ THETA.T, Y_U) / len(Y_U)  # SFT
    predicted = contract(mean_logprob_direction(X_O @ THETA.T, Y_O), kernel, residual, eta=1e-5)
    theta = THETA.clone().requires_grad_()
    (-lbar(theta, X_U, Y_U)).backward()
    assert theta.grad is not None
    measured = lbar(THETA - 1e-5 * theta.grad, X_O, Y_O) - lbar(THETA, X_O, Y_O)
    assert predicted.item() == pytest.approx(measured.item(), rel=1e-4)


def test_a_kernel_of_other_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="same observed and trained"):
        contract(torch.zeros(2, 5), torch.zeros(2, 5, 3, 5), torch.zeros(4, 5), eta=1.0)
