r"""The objective of stage 1: imitate chosen answers, and smooth the policy with gentle negatives.

    body        E[-log pi(y+|x)] + lambda * ReLU(C - E_batch[NLL(y-|x)])       constrained_sft_loss
    abstract    E[NLL(y+|x)] + lambda * E[CE_eps(y-|x)]                        smoothed_sft_loss

The paper (CW-DPO, arXiv 2510.11978) states it twice. A step that is computed in parts (micro-batches, ranks) adds up
the parts' losses: ``chosen_share`` and ``negative_share`` are the shares of the step's chosen answers and gentle
negatives that are in this part.
"""

from torch import Tensor

from cwdpo.batch import masked_mean


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
