"""The squeezing effect in one softmax: pushing down an improbable token feeds the argmax and starves the rest.

The logits themselves are the parameters, so K is the identity and one step of gradient descent is exact.
"""

import torch
from torch import Tensor

from cwdpo.cooling import cooling_weight


def push_down(logprobs: Tensor, target: int, *, step: float, weight: Tensor | float = 1.0) -> Tensor:
    r"""Log-probs after one gradient step on ``weight * log pi(target)``, in closed form.

        z_i <- z_i - eta w (1[i = l] - pi_i)        so that
        pi_i <- pi_i exp(eta w (pi_i - 1[i = l])) / Z

    With ``l`` not the argmax, the argmax always gains and ``l`` always loses. Any other token gains only if
    eta w pi_i > log Z; for a small step that is pi_i > sum_j pi_j^2 - pi_l, which where one token dominates none but
    the argmax fulfils: the mass of ``l``, and of all the others, is squeezed into it (Ren and Sutherland,
    ICLR 2025). ``weight = 0`` leaves everything as it was.

    Args:
        logprobs: ``(V,)`` log pi.
        target: l, the token that is pushed down.
        step: eta > 0 times whatever scales the loss.
        weight: w_c, 0 to 1.

    Returns:
        ``(V,)`` log-probs.

    Example:
        >>> before = torch.tensor([0.7, 0.29, 0.01])
        >>> push_down(before.log(), 2, step=1.0).exp()
        tensor([0.7827, 0.2152, 0.0021])
    """
    if step <= 0:
        raise ValueError(f"step must be > 0, got {step}. A negative step would pull the token up.")
    _check_target(logprobs, target)
    change = logprobs.exp()
    change[target] -= 1
    return (logprobs + step * weight * change).log_softmax(dim=-1)


def gains_share(logprobs: Tensor, target: int, *, step: float, weight: Tensor | float = 1.0) -> Tensor:
    """``(V,)`` True for the tokens that :func:`push_down` makes likelier."""
    return push_down(logprobs, target, step=step, weight=weight) > logprobs


def push_down_repeatedly(
    logprobs: Tensor,
    target: int,
    *,
    step: float,
    num_steps: int,
    floor: float | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Push the same token down again and again; cooled, each push is scaled by w_c of what the last one left.

    Args:
        logprobs: ``(V,)`` log pi.
        target: the token that is pushed down, an answer of length 1, so that its log-prob is lbar.
        step: as in :func:`push_down`.
        num_steps: how often.
        floor: l_floor, nats per token; None does not cool.
        temperature: tau, nats per token.

    Returns:
        ``(num_steps + 1, V)`` log-probs, the first as given.
    """
    path = [logprobs]
    for _ in range(num_steps):
        now = path[-1]
        weight = 1.0 if floor is None else cooling_weight(now[target], floor, temperature=temperature)
        path.append(push_down(now, target, step=step, weight=weight))
    return torch.stack(path)


def _check_target(logprobs: Tensor, target: int) -> None:
    if logprobs.ndim != 1 or not 0 <= target < len(logprobs):
        raise ValueError(f"expected (V,) log-probs and a token in them, got {tuple(logprobs.shape)} and {target}.")
