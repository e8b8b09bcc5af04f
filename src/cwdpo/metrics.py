"""Calibration (does the model know when its next token is right?) and drift (how far have predictions moved?)."""

import math

import torch
from torch import Tensor


def token_ece(confidence: Tensor, hit: Tensor, *, num_bins: int = 15) -> Tensor:
    r"""Expected calibration error of the likeliest token.

        ECE = sum_b (n_b / n) |mean confidence in b - share of hits in b|        bins of equal width on [0, 1]

    Args:
        confidence: ``(tokens,)`` probability (not log-probability) of the likeliest token.
        hit: ``(tokens,)`` True where the likeliest token was the right one.

    Returns:
        ``()`` in [0, 1]; 0 is perfect. No tokens at all, or numbers that are not probabilities, are a ValueError.

    Example:
        >>> import torch
        >>> token_ece(torch.tensor([0.9, 0.9]), torch.tensor([True, False]))  # 0.9 sure, half right
        tensor(0.4000)
    """
    count, sure, right = reliability(confidence, hit, num_bins=num_bins).unbind(dim=1)
    return (count / count.sum() * (sure - right).abs()).sum().float()


def reliability(confidence: Tensor, hit: Tensor, *, num_bins: int = 15) -> Tensor:
    r"""The bins of :func:`token_ece`: how sure the model was, and how often it was right.

    Arguments and errors are those of :func:`token_ece`. Of the bins only the last has both its ends. The result is
    ``(num_bins, 3)`` tokens in the bin, their mean confidence, and the share of hits; zeros where it is empty.

    Example:
        >>> reliability(torch.tensor([0.25, 0.75, 1.0]), torch.tensor([False, True, False]), num_bins=2)
        tensor([[1.0000, 0.2500, 0.0000],
                [2.0000, 0.8750, 0.5000]], dtype=torch.float64)
    """
    probability = _probabilities(confidence, hit)
    edges = torch.linspace(0, 1, num_bins + 1, dtype=probability.dtype, device=probability.device)
    bins = (torch.bucketize(probability, edges, right=True) - 1).clamp(max=num_bins - 1)
    sums = torch.stack([torch.ones_like(probability), probability, hit.double()], dim=1)
    found = sums.new_zeros(num_bins, 3).index_add(0, bins, sums)
    found[:, 1:] /= found[:, :1].clamp(min=1)
    return found


def total_variation(policy: Tensor, reference: Tensor) -> Tensor:
    r"""Total variation distance between two predicted distributions.

        TV(p, q) = 1/2 sum_v |p_v - q_v|

    Args:
        policy, reference: ``(..., V)`` log-probs over the vocabulary, at the same tokens.

    Returns:
        ``(...)`` from 0 (equal) to 1 (no token in common).

    Example:
        >>> p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
        >>> total_variation(p.log(), q.log())
        tensor(0.2500)
    """
    _check_shapes(policy, reference)
    return (policy.exp() - reference.exp()).abs().sum(dim=-1) / 2


def jensen_shannon(policy: Tensor, reference: Tensor) -> Tensor:
    r"""Jensen-Shannon divergence between two predicted distributions.

        JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m),   m = (p + q) / 2

    Arguments are those of :func:`total_variation`; log-probs of minus infinity are allowed. The result is ``(...)``
    nats, from 0 (equal) to log 2 (no token in common).
    """
    _check_shapes(policy, reference)
    middle = torch.logaddexp(policy, reference) - math.log(2)
    return (_kl(policy, middle) + _kl(reference, middle)) / 2


def kl_divergence(policy: Tensor, reference: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of predicted distributions: how surprising the policy's tokens are to the reference.

        KL(p || q) = sum_v p_v (log p_v - log q_v)

    Arguments are those of :func:`total_variation`. The result is ``(...)`` nats, 0 where they are equal, and infinite
    where the reference excludes what the policy allows.

    Example:
        >>> p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
        >>> kl_divergence(p.log(), q.log())
        tensor(0.1308)
    """
    _check_shapes(policy, reference)
    return _kl(policy, reference)


def _probabilities(confidence: Tensor, hit: Tensor) -> Tensor:
    """``(tokens,)`` the confidences in double precision, if they are probabilities."""
    if confidence.shape != hit.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"expected two (tokens,) tensors with at least one token, got confidence {tuple(confidence.shape)}, "
            f"hit {tuple(hit.shape)}. Select the answer's tokens first: confidence[mask]."
        )
    lowest, highest = confidence.min().item(), confidence.max().item()
    if not (lowest >= 0 and highest <= 1 + 1e-5):
        raise ValueError(
            f"confidence runs from {lowest:.3g} to {highest:.3g}, but probabilities lie in [0, 1]. "
            "If these are log-probabilities, take .exp() first."
        )
    return confidence.double().clamp(max=1.0)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1)


def _check_shapes(policy: Tensor, reference: Tensor) -> None:
    if policy.shape != reference.shape:
        raise ValueError(
            f"expected two (..., V) tensors of one shape, got policy {tuple(policy.shape)}, reference "
            f"{tuple(reference.shape)}. Score the same answers with both models."
        )
