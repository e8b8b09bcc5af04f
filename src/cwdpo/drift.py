"""Drift: how far has the policy moved from its reference, token by token?"""

import math

import torch
from torch import Tensor


def total_variation(policy: Tensor, reference: Tensor) -> Tensor:
    r"""Total variation distance between two predicted distributions.

        TV(p, q) = 1/2 sum_v |p_v - q_v|

    Args:
        policy: ``(..., V)`` log-probs over the vocabulary.
        reference: ``(..., V)`` log-probs of the reference at the same tokens.

    Returns:
        ``(...)`` from 0 (equal) to 1 (no token in common).

    Example:
        >>> p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
        >>> total_variation(p.log(), q.log())
        tensor(0.2500)
    """
    _check(policy, reference)
    return (policy.exp() - reference.exp()).abs().sum(dim=-1) / 2


def jensen_shannon(policy: Tensor, reference: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence between two predicted distributions.

        JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m),   m = (p + q) / 2

    Args:
        policy: ``(..., V)`` log-probs over the vocabulary; minus infinity is allowed.
        reference: ``(..., V)`` log-probs of the reference at the same tokens.

    Returns:
        ``(...)`` nats, from 0 (equal) to log 2 (no token in common).
    """
    _check(policy, reference)
    middle = torch.logaddexp(policy, reference) - math.log(2)
    return (_kl(policy, middle) + _kl(reference, middle)) / 2


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)


def _check(policy: Tensor, reference: Tensor) -> None:
    if policy.shape != reference.shape:
        raise ValueError(
            f"expected two (..., V) tensors of one shape, got policy {tuple(policy.shape)}, reference "
            f"{tuple(reference.shape)}. Score the same answers with both models."
        )
