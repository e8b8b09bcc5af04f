r"""The objectives of the paper: stage 1 smooths the policy with gentle negatives, stage 2 is DPO with cooled negatives.

    stage 1, body        E[-log pi(y+|x)] + lambda * ReLU(C - E_batch[NLL(y-|x)])       constrained_sft_loss
    stage 1, abstract    E[NLL(y+|x)] + lambda * E[CE_eps(y-|x)]                        smoothed_sft_loss
    stage 2              -log sigmoid(beta * (Delta_w - w_c * Delta_l))                 cw_dpo_loss

A step that is computed in parts (micro-batches, ranks) adds up the parts' losses: ``chosen_share`` and
``negative_share`` are the shares of the step's chosen answers and gentle negatives that are in this part.

References:
    CW-DPO, arXiv 2510.11978: all three objectives, and w_c in :mod:`cwdpo.cooling`.
    Rafailov et al., Direct Preference Optimization, arXiv 2305.18290: equation 7 is stage 2 with w_c = 1.
"""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cwdpo.batch import masked_mean


def cw_dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    r"""Stage 2: cooling-weighted DPO loss of each preference pair.

        loss = -log sigmoid(beta * (Delta_w - w_c * Delta_l))

    ``weight = 1`` is plain DPO. ``weight = 0`` ignores the rejected answer.

    Args:
        chosen_logratio: ``(batch,)`` Delta_w = log pi(y_w|x) - log pi_ref(y_w|x), nats, summed over tokens.
        rejected_logratio: ``(batch,)`` Delta_l, the same for the rejected answer.
        weight: ``(batch,)`` w_c from :func:`cwdpo.cooling.cooling_weight`.
        beta: inverse temperature of the implicit reward, > 0.

    Returns:
        ``(batch,)`` losses. Not averaged: the trainer decides what "the batch" is.

    Raises:
        ValueError: the three shapes differ, for example because log-ratios are still per token.

    Example:
        >>> import torch
        >>> one, off = torch.ones(1), torch.zeros(1)
        >>> cw_dpo_loss(one, -one, weight=off, beta=0.5)
        tensor([0.4741])
    """
    if not (chosen_logratio.ndim == 1 and chosen_logratio.shape == rejected_logratio.shape == weight.shape):
        raise ValueError(
            "expected three (batch,) tensors, got "
            f"chosen_logratio {tuple(chosen_logratio.shape)}, "
            f"rejected_logratio {tuple(rejected_logratio.shape)}, weight {tuple(weight.shape)}. "
            "Sum log-probs over tokens first: AnswerLogprobs.total does."
        )
    margin = chosen_logratio - weight * rejected_logratio
    return -F.logsigmoid(beta * margin)


def constrained_sft_loss(
    chosen_nll: Tensor,
    negative_nll: Tensor,
    *,
    penalty: float,
    ceiling: float,
    batch_negative_nll: Tensor | None = None,
    chosen_share: Tensor | float = 1.0,
    negative_share: Tensor | float = 1.0,
) -> Tensor:
    r"""Stage 1, body of the paper: imitate the chosen answers and keep the gentle negatives from becoming likely.

        loss = E[-log pi(y+|x)] + lambda * ReLU(C - E_batch[NLL(y-|x)])

    The hinge is a function of a batch mean, so it does not add up over micro-batches: it opens when the *mean* NLL
    falls below C, however the single answers scatter. Where the batch is spread over ranks, pass the mean over all of
    them as ``batch_negative_nll``: it decides whether the hinge is open, while the gradient comes from this rank.

    Args:
        chosen_nll: ``(n,)`` NLL of the chosen answers.
        negative_nll: ``(m,)`` NLL = -lbar of the gentle negatives, nats per token; empty switches the hinge off.
        penalty: lambda >= 0.
        ceiling: C, nats per token.
        batch_negative_nll: ``()`` mean NLL over the whole batch, detached; by default the mean of ``negative_nll``.
        chosen_share: of the step's chosen answers.
        negative_share: of the step's gentle negatives.

    Returns:
        ``()`` loss.

    Example:
        >>> import torch
        >>> constrained_sft_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.5, 1.0]), penalty=2.0, ceiling=1.0)
        tensor(2.5000)
    """
    _check_penalty(penalty)
    loss = chosen_share * chosen_nll.mean()
    if not len(negative_nll):
        return loss
    here = negative_nll.mean()
    gate = here.detach() if batch_negative_nll is None else batch_negative_nll.detach()
    return loss + negative_share * penalty * (ceiling - here) * (gate < ceiling)


def smoothed_sft_loss(
    chosen_nll: Tensor,
    negative_smoothed_nll: Tensor,
    *,
    penalty: float,
    chosen_share: Tensor | float = 1.0,
    negative_share: Tensor | float = 1.0,
) -> Tensor:
    r"""Stage 1, abstract of the paper: low-weight smoothed supervision on gentle negatives, without a constraint.

        loss = E[NLL(y+)] + lambda * E[CE_eps(y-)]

    Args:
        chosen_nll: ``(n,)`` NLL of the chosen answers.
        negative_smoothed_nll: ``(m,)`` from :func:`smoothed_nll`; may be empty.
        penalty: lambda >= 0, low (the gentle negative is wrong in one place and right in all others).
        chosen_share: of the step's chosen answers.
        negative_share: of the step's gentle negatives.

    Returns:
        ``()`` loss.

    Example:
        >>> import torch
        >>> smoothed_sft_loss(torch.tensor([1.0]), torch.tensor([3.0]), penalty=0.1)
        tensor(1.3000)
    """
    _check_penalty(penalty)
    loss = chosen_share * chosen_nll.mean()
    if not len(negative_smoothed_nll):
        return loss
    return loss + negative_share * penalty * negative_smoothed_nll.mean()


def smoothed_nll(token: Tensor, uniform: Tensor, mask: Tensor, *, epsilon: float) -> Tensor:
    r"""Label-smoothed cross-entropy of each answer, averaged over its tokens.

        CE_eps = -(1/L) sum_t [(1 - eps) log pi(y_t) + eps * (1/V) sum_v log pi(v)]

    The smoothing target spreads ``epsilon`` evenly over the whole vocabulary, the answer's token included, as
    ``torch.nn.functional.cross_entropy(label_smoothing=epsilon)`` does.

    Args:
        token: ``(A, T)`` log pi(y_t | x, y_<t).
        uniform: ``(A, T)`` mean log-prob over the vocabulary at each token.
        mask: ``(A, T)`` True on the answer's tokens.
        epsilon: in [0, 1).

    Returns:
        ``(A,)`` nats per token.

    Example:
        >>> import torch
        >>> half = torch.tensor([[-1.0]])
        >>> smoothed_nll(half, torch.tensor([[-3.0]]), torch.tensor([[True]]), epsilon=0.5)
        tensor([2.])
    """
    if not 0 <= epsilon < 1:
        raise ValueError(f"epsilon must be in [0, 1), got {epsilon}. Use 0.1 to start.")
    return -masked_mean((1 - epsilon) * token + epsilon * uniform, mask)


def _check_penalty(penalty: float) -> None:
    if penalty < 0:
        raise ValueError(f"penalty must be >= 0, got {penalty}. Write `objective: plain` for SFT without negatives.")
