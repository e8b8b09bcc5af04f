"""Stage 2 objective: DPO in which easy negatives push less."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def cw_dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    r"""Cooling-weighted DPO loss of each preference pair.

        loss = -log sigmoid(beta * (Delta_w - w_c * Delta_l))        CW-DPO loss, arXiv 2510.11978

    ``weight = 1`` is plain DPO (arXiv 2305.18290, equation 7). ``weight = 0`` ignores the rejected answer.

    Args:
        chosen_logratio: ``(batch,)`` Delta_w = log pi(y_w|x) - log pi_ref(y_w|x), nats, summed over tokens.
        rejected_logratio: ``(batch,)`` Delta_l, the same for the rejected answer.
        weight: ``(batch,)`` w_c from :func:`cwdpo.cooling.cooling_weight`.
        beta: inverse temperature of the implicit reward, > 0.

    Returns:
        ``(batch,)`` losses. Not averaged: the trainer decides what "the batch" is.

    Raises:
        ValueError: the three shapes differ, for example because log-ratios still stand per token.

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
