"""G, the loss residual: where each loss pulls the logits of the answers that it trains on.

Every loss here sees an answer through sums of its token log-probs alone, so all have the same residual up to a number:

    G_t = dL/dz_t = c (pi_t - onehot(y_t))

The *pull* c belongs to the answer. Gradient descent raises an answer whose pull is positive and lowers one whose pull
is negative.
"""

import math

import torch
from torch import Tensor


def token_residual(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Gradient of a token's negative log-likelihood in its logits.

        pi_t - onehot(y_t)        arXiv 2407.10490, proposition 1

    Args:
        logits: ``(n, V)``.
        targets: ``(n,)`` token ids.

    Returns:
        ``(n, V)``; each row adds up to 0.

    Example:
        >>> token_residual(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[-0.5000,  0.5000]])
    """
    residual = logits.softmax(dim=-1)
    return residual - torch.nn.functional.one_hot(targets, logits.shape[-1])


def sft_pull(lengths: Tensor) -> Tensor:
    """``(A,)`` pull c = 1 / L of plain SFT, ``L = -lbar(y|x)``, for answers of ``(A,)`` tokens.

    Example:
        >>> sft_pull(torch.tensor([4, 2]))
        tensor([0.2500, 0.5000])
    """
    return 1.0 / lengths


def cw_dpo_pulls(
    chosen_logratio: Tensor,
    rejected_logratio: Tensor,
    weight: Tensor,
    *,
    beta: float,
    flow: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Pulls of cooling-weighted DPO on the chosen and on the rejected answer.

        a = sigmoid(beta (Delta_w - w_c Delta_l))
        c_w = beta (1 - a)
        c_l = -beta (1 - a) (w_c + flow Delta_l)

    ``weight = 1`` is DPO (arXiv 2407.10490). With ``detach: true`` the weight is a constant and ``flow``
    is 0; where the gradient flows through it, ``flow = d w_c / d log pi = w_c (1 - w_c) / (tau L)``.

    Args:
        chosen_logratio: ``(pairs,)`` Delta_w, nats, summed over tokens.
        rejected_logratio: ``(pairs,)`` Delta_l.
        weight: ``(pairs,)`` w_c.
        beta: inverse temperature of the implicit reward.
        flow: ``(pairs,)`` or 0.

    Returns:
        ``(pairs,)`` c_w >= 0 and ``(pairs,)`` c_l, of opposite sign while the weight is detached.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> cw_dpo_pulls(zero, zero, one, beta=0.1)
        (tensor([0.0500]), tensor([-0.0500]))
    """
    unsure = torch.sigmoid(-beta * (chosen_logratio - weight * rejected_logratio))  # 1 - a
    return beta * unsure, -beta * unsure * (weight + flow * rejected_logratio)


def loser_push(
    mean_logprob: Tensor,
    weight: Tensor,
    *,
    start: Tensor | float,
    length: int,
    beta: float,
    chosen_logratio: float = 0.0,
) -> Tensor:
    r"""Squared push ||G_l||^2 on each token of a loser whose tokens are all equally likely.

        ||G_l||^2 = (beta (1 - a) w_c)^2 ||pi - onehot(y_l)||^2,    Delta_l = L (lbar - start)

    The rest of each token's distribution is taken to sit on one other token, the most that a push can be:
    ||pi - onehot||^2 = 2 (1 - p)^2 with p = exp(lbar). Spread thinly over a large vocabulary it would be half of that.

    Plain DPO damps an easy loser only through 1 - a, which knows how far the loser has fallen and not how improbable it
    is: one that the reference finds improbable too is pushed at full strength, and one that falls is pushed on until
    1 - a has closed. Pushes there are large and teach nothing: the region that arXiv 2510.11978 calls vulnerable, as we
    read it. w_c closes it.

    Args:
        mean_logprob: ``(n,)`` lbar(y_l|x), nats per token.
        weight: ``(n,)`` w_c, 1 for DPO.
        start: lbar of the loser under the reference, ``()`` or ``(n,)``; equal to ``mean_logprob`` at the first step.
        length: L, tokens.
        beta: inverse temperature of the implicit reward.
        chosen_logratio: Delta_w, nats.

    Returns:
        ``(n,)`` squared pushes.

    Example:
        >>> loser_push(torch.tensor([-50.0]), torch.ones(1), start=-50.0, length=1, beta=2.0)
        tensor([2.0000])
    """
    if length < 1:
        raise ValueError(f"an answer has at least its end token, got length {length}.")
    rejected_logratio = length * (mean_logprob - start)
    chosen = torch.full_like(rejected_logratio, chosen_logratio)
    _, pull = cw_dpo_pulls(chosen, rejected_logratio, weight, beta=beta)
    return (math.sqrt(2) * pull * (1 - mean_logprob.exp())) ** 2
