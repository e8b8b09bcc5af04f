"""Cooling: decide how hard each rejected answer may push."""

import torch
from torch import Tensor

from cwdpo.errors import ConfigError


def cooling_weight(mean_logprob: Tensor, floor: Tensor | float, *, temperature: float) -> Tensor:
    r"""Weight of each rejected answer, from 0 (easy, ignored) to 1 (hard, full DPO).

        w_c = sigmoid((lbar(y_l|x) - l_floor) / tau)        CW-DPO weight, arXiv 2510.11978

    Gradients flow through the result. Detach it at the call site to use it as a constant.

    Args:
        mean_logprob: ``(batch,)`` lbar(y_l|x), nats per token, at most 0.
        floor: ``()`` or float, l_floor; an answer exactly at the floor gets weight 0.5.
        temperature: tau > 0, in nats per token; smaller makes the switch sharper.

    Returns:
        ``(batch,)`` weights in [0, 1].

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> cooling_weight(torch.tensor([-9.0, -2.0, -0.5]), floor=-2.0, temperature=1.0)
        tensor([0.0009, 0.5000, 0.8176])
    """
    if temperature <= 0:
        raise ValueError(
            f"temperature must be > 0, got {temperature}. Use 1.0 to start; "
            "for plain DPO write `cooling: null` instead of shrinking the temperature."
        )
    return torch.sigmoid((mean_logprob - floor) / temperature)


def measure_floor(rule: float | str, *, rejected: Tensor, gentle: Tensor) -> float:
    """l_floor in nats per token, from the negatives under the model that stage 2 starts from.

    ``gentle`` is the mean over the gentle negatives (over all negatives where there are none), ``mean`` the mean over
    all negatives (the paper keeps the floor near it), ``quantile:q`` that quantile of all negatives; a number stands
    for itself. Measure once, at the start of stage 2, and freeze: a floor that follows the policy would let negatives
    that are pushed down stay "hard" forever.

    Args:
        rule: as above.
        rejected: ``(n,)`` lbar of the rejected answers.
        gentle: ``(m,)`` lbar of the gentle negatives, possibly empty.

    Raises:
        ConfigError: the rule is unknown, or there is nothing to measure.

    Example:
        >>> measure_floor("mean", rejected=torch.tensor([-4.0, -2.0]), gentle=torch.tensor([-1.0]))
        -3.0
        >>> measure_floor("gentle", rejected=torch.tensor([-4.0, -2.0]), gentle=torch.tensor([-1.0]))
        -1.0
    """
    if not isinstance(rule, str):
        return float(rule)
    measured = gentle if rule == "gentle" and len(gentle) else rejected
    if not len(measured):
        raise ConfigError(f"cooling.floor is `{rule}`, but there are no negatives to measure. Write a number instead.")
    if rule in ("gentle", "mean"):
        return measured.double().mean().item()
    if rule.startswith("quantile:"):
        return torch.quantile(measured.double(), float(rule.removeprefix("quantile:"))).item()
    raise ConfigError(f"cooling.floor is `{rule}`; write `gentle`, `mean`, `quantile:0.5` or nats per token.")
