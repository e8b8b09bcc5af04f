"""Learning dynamics as formulae: what one gradient step does to log-probs, before any model is asked.

After Ren and Sutherland, "Learning Dynamics of LLM Finetuning" (ICLR 2025, arXiv 2407.10490), whose decomposition
arXiv 2510.11978 carries to vision-language models:

    Delta lbar(y|x_o) ~ -eta * A(x_o) K(x_o, x_u) G(x_u, y_u)

G is the loss residual. Every loss here depends on an answer through sums of its token log-probs alone, so all have the
same residual up to a factor, the *pull* c of the answer:

    G_t = dL/dz_t = c (pi_t - onehot(y_t))

Gradient descent raises an answer whose pull is positive, and lowers one whose pull is negative.
:mod:`cwdpo.analysis.influence` measures the decomposition on a real model.
"""

import math

import torch
from torch import Tensor

from cwdpo.cooling import cooling_weight


def token_residual(logits: Tensor, targets: Tensor) -> Tensor:
    r"""Gradient of a token's negative log-likelihood in its logits.

        pi_t - onehot(y_t)        arXiv 2407.10490, proposition 1

    ``(n, V)``, for ``(n, V)`` logits and ``(n,)`` token ids; each row adds up to 0.

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
    chosen_logratio: Tensor, rejected_logratio: Tensor, weight: Tensor, *, beta: float, flow: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Pulls of cooling-weighted DPO on the chosen and on the rejected answer.

        a = sigmoid(beta (Delta_w - w_c Delta_l))
        c_w = beta (1 - a)
        c_l = -beta (1 - a) (w_c + flow Delta_l)

    ``weight = 1`` is DPO (arXiv 2407.10490). With ``detach: true`` the weight is a constant and ``flow``
    is 0; where the gradient flows through it, ``flow = d w_c / d log pi = w_c (1 - w_c) / (tau L)``.

    All are ``(pairs,)``: the log-ratios Delta_w and Delta_l, in nats and summed over tokens, the weight, and the pulls
    c_w >= 0 and c_l, of opposite sign while the weight is detached.

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
    r"""Squared push ||G_l||^2, ``(n,)``, on each token of a loser whose tokens are all equally likely.

        ||G_l||^2 = (beta (1 - a) w_c)^2 ||pi - onehot(y_l)||^2,    Delta_l = L (lbar - start)

    The rest of each token's distribution is taken to sit on one other token, the most that a push can be:
    ||pi - onehot||^2 = 2 (1 - p)^2 with p = exp(lbar). Spread thinly over a large vocabulary it would be half of that.

    Plain DPO damps an easy loser only through 1 - a, which knows how far the loser has fallen and not how improbable it
    is: one that the reference finds improbable too is pushed at full strength, and one that falls is pushed on until
    1 - a has closed. Pushes there are large and teach nothing: the region that arXiv 2510.11978 calls vulnerable, as we
    read it. w_c closes it.

    Takes ``(n,)`` lbar(y_l|x), nats per token, and w_c (1 for DPO); ``start``, lbar under the reference, ``()`` or
    ``(n,)``, is equal to the former at the first step. L is in tokens, ``chosen_logratio`` (Delta_w) in nats.

    Example:
        >>> loser_push(torch.tensor([-50.0]), torch.ones(1), start=-50.0, length=1, beta=2.0)
        tensor([2.0000])
    """
    if length < 1:
        raise ValueError(f"an answer has at least its end token, but got length {length}. Count it too.")
    rejected_logratio = length * (mean_logprob - start)
    chosen = torch.full_like(rejected_logratio, chosen_logratio)
    _, pull = cw_dpo_pulls(chosen, rejected_logratio, weight, beta=beta)
    return (math.sqrt(2) * pull * (1 - mean_logprob.exp())) ** 2


def belief_geometry(logits: Tensor) -> Tensor:
    r"""How changes of the logits change the log-probs.

        A = d log pi / dz = I - 1 pi^T        arXiv 2407.10490, proposition 1

    ``(n, V, V)``, for ``(n, V)`` logits; row v is the gradient of log pi(v). Large: see :func:`apply_belief_geometry`.

    Example:
        >>> belief_geometry(torch.zeros(1, 2))
        tensor([[[ 0.5000, -0.5000],
                 [-0.5000,  0.5000]]])
    """
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return identity - logits.softmax(dim=-1)[:, None, :]


def apply_belief_geometry(logits: Tensor, change: Tensor) -> Tensor:
    """``A dz`` without the matrix, ``dz_v - sum_j pi_j dz_j``: ``(n, V)`` first-order change of every log-prob."""
    return change - (logits.softmax(dim=-1) * change).sum(dim=-1, keepdim=True)


def mean_logprob_direction(logits: Tensor, targets: Tensor) -> Tensor:
    r"""The rows of A that an answer's mean log-prob looks at, over its length.

        d lbar / dz_t = (onehot(y_t) - pi_t) / L

    ``(L, V)``, for the ``(L, V)`` logits and ``(L,)`` tokens of one answer.
    """
    return -token_residual(logits, targets) / len(targets)


def contract(direction: Tensor, kernel: Tensor, residual: Tensor, *, eta: float) -> Tensor:
    r"""The predicted change of the observed answer's mean log-prob, in nats per token.

        Delta lbar ~ -eta sum_{t,v,s,w} A[t, v] K[t, v, s, w] G[s, w]

    For a ``(n_o, V)`` :func:`mean_logprob_direction`, the ``(n_o, V, n_u, V)`` empirical NTK of the logits,
    K[t, v, s, w] = <dz_tv/dtheta, dz_sw/dtheta>, and ``(n_u, V)`` G over all tokens that the loss trains on.
    """
    if kernel.shape != direction.shape + residual.shape:
        raise ValueError(
            f"expected a kernel of shape {(*direction.shape, *residual.shape)}, got {tuple(kernel.shape)}. "
            "Compute it for the same observed and trained answers."
        )
    return -eta * torch.einsum("tv,tvsw,sw->", direction, kernel, residual)


def push_down(logprobs: Tensor, target: int, *, step: float, weight: Tensor | float = 1.0) -> Tensor:
    r"""Log-probs after one gradient step on ``weight * log pi(target)``, exact where the logits are the parameters.

        z_i <- z_i - eta w (1[i = l] - pi_i)        so that
        pi_i <- pi_i exp(eta w (pi_i - 1[i = l])) / Z

    With ``l`` not the argmax, the argmax always gains and ``l`` always loses. Any other token gains only if
    eta w pi_i > log Z; for a small step that is pi_i > sum_j pi_j^2 - pi_l, which where one token dominates none but
    the argmax fulfils: the mass of ``l``, and of all the others, is squeezed into it (Ren and Sutherland, ICLR 2025).

    Log-probs are ``(V,)``. The step is eta > 0 times whatever scales the loss, the weight w_c.

    Example:
        >>> before = torch.tensor([0.7, 0.29, 0.01])
        >>> push_down(before.log(), 2, step=1.0).exp()
        tensor([0.7827, 0.2152, 0.0021])
    """
    if step <= 0:
        raise ValueError(f"step must be > 0, got {step}. A negative step would pull the token up.")
    if logprobs.ndim != 1 or not 0 <= target < len(logprobs):
        raise ValueError(f"expected (V,) log-probs and a token in them, got {tuple(logprobs.shape)} and {target}.")
    change = logprobs.exp()
    change[target] -= 1
    return (logprobs + step * weight * change).log_softmax(dim=-1)


def push_down_repeatedly(
    logprobs: Tensor, target: int, *, step: float, num_steps: int, floor: float | None = None, temperature: float = 1.0
) -> Tensor:
    """Do :func:`push_down` again and again: ``(num_steps + 1, V)`` log-probs, the first as given.

    Cooled, each push is scaled by w_c of what the last one left; the token counts as an answer of length 1, so that its
    log-prob is lbar. Floor (None does not cool) and temperature are in nats per token.
    """
    path = [logprobs]
    for _ in range(num_steps):
        now = path[-1]
        weight = 1.0 if floor is None else cooling_weight(now[target], floor, temperature=temperature)
        path.append(push_down(now, target, step=step, weight=weight))
    return torch.stack(path)
