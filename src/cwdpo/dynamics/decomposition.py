"""A, the belief geometry, and the product A K G."""

import torch
from torch import Tensor

from cwdpo.dynamics.residuals import token_residual


def belief_geometry(logits: Tensor) -> Tensor:
    r"""How changes of the logits change the log-probs.

        A = d log pi / dz = I - 1 pi^T        arXiv 2407.10490, proposition 1

    Args:
        logits: ``(n, V)``.

    Returns:
        ``(n, V, V)``; row v is the gradient of log pi(v). Large: see :func:`apply_belief_geometry`.

    Example:
        >>> belief_geometry(torch.zeros(1, 2))
        tensor([[[ 0.5000, -0.5000],
                 [-0.5000,  0.5000]]])
    """
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return identity - logits.softmax(dim=-1)[:, None, :]


def apply_belief_geometry(logits: Tensor, change: Tensor) -> Tensor:
    r"""``A dz`` without the matrix: ``dz_v - sum_j pi_j dz_j``.

    Args:
        logits: ``(n, V)``.
        change: ``(n, V)`` change of the logits.

    Returns:
        ``(n, V)`` first-order change of every log-prob.
    """
    return change - (logits.softmax(dim=-1) * change).sum(dim=-1, keepdim=True)


def mean_logprob_direction(logits: Tensor, targets: Tensor) -> Tensor:
    r"""The rows of A that an answer's mean log-prob looks at, over its length.

        d lbar / dz_t = (onehot(y_t) - pi_t) / L

    Args:
        logits: ``(L, V)`` of one answer.
        targets: ``(L,)`` its tokens.

    Returns:
        ``(L, V)``.
    """
    return -token_residual(logits, targets) / len(targets)


def contract(direction: Tensor, kernel: Tensor, residual: Tensor, *, eta: float) -> Tensor:
    r"""The predicted change of the observed answer's mean log-prob.

        Delta lbar ~ -eta sum_{t,v,s,w} A[t, v] K[t, v, s, w] G[s, w]

    Args:
        direction: ``(n_o, V)`` from :func:`mean_logprob_direction`.
        kernel: ``(n_o, V, n_u, V)`` empirical NTK of the logits, K[t, v, s, w] = <dz_tv/dtheta, dz_sw/dtheta>.
        residual: ``(n_u, V)`` G, over all tokens that the loss trains on.
        eta: learning rate of the SGD step.

    Returns:
        ``()`` nats per token.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if kernel.shape != direction.shape + residual.shape:
        raise ValueError(
            f"expected a kernel of shape {(*direction.shape, *residual.shape)}, got {tuple(kernel.shape)}. "
            "Compute it for the same observed and trained answers."
        )
    return -eta * torch.einsum("tv,tvsw,sw->", direction, kernel, residual)
