"""Cooling: decide how hard each rejected answer may push."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cwdpo.batch import Role
from cwdpo.config.limits import floor_rule
from cwdpo.config.recipe import CoolingScales
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


def cools_nothing(weight: Tensor) -> str | None:
    """Why cooling makes no difference between these answers; None where it does, or where there are none.

    Args:
        weight: ``(n,)`` w_c of the rejected answers before the first step.

    Example:
        >>> cools_nothing(torch.tensor([0.995, 0.999]))
        'no rejected answer is too easy (weight at least 0.995), so this is DPO without cooling'
        >>> cools_nothing(torch.tensor([0.4, 0.999]))
    """
    if len(weight) and weight.min() > _ALL:
        return f"no rejected answer is too easy (weight at least {weight.min():.3g}), so this is DPO without cooling"
    if len(weight) and weight.max() < 1 - _ALL:
        return f"all rejected answers are too easy (weight at most {weight.max():.2g}), so stage 2 works like SFT"
    return None


_ALL = 0.99
"""From here on w_c is as good as 1, and below the same distance from 0 as good as 0."""


def pair_share(weight: Tensor, *, scales: CoolingScales = "rejected", drop_below: float = 0.0) -> Tensor:
    """How much each pair's loss counts, from its cooling weight.

    In the paper every pair counts in full, whatever its w_c: with w_c near 0 it goes on as imitation of its chosen
    answer. That is welcome where chosen answers are right, and not where they are only better than the rejected ones.

    Args:
        weight: ``(batch,)`` w_c.
        scales: what w_c scales. ``rejected``: the rejected answer's log-ratio, as in the paper. ``pair``: the loss of
            the whole pair, so that an easy pair teaches nothing at all.
        drop_below: pairs with a weight below this count 0.

    Returns:
        ``(batch,)`` factors of the losses.

    Example:
        >>> weight = torch.tensor([0.01, 0.50])
        >>> pair_share(weight, drop_below=0.05), pair_share(weight, scales="pair")
        (tensor([0., 1.]), tensor([0.0100, 0.5000]))
    """
    share = weight if scales == "pair" else torch.ones_like(weight)
    return torch.where(weight < drop_below, 0.0, share)


def measure_floor(rule: float | str, *, lbar: Mapping[Role, Tensor], temperature: float) -> float:
    """l_floor in nats per token, from the answers of stage 2's rows under the model that it starts from.

    The paper keeps the floor near the ``mean`` over all rejected answers. ``gentle`` is the mean over the gentle
    negatives (over all rejected answers where there are none), ``chosen`` that over the chosen answers, and
    ``quantile:q`` that quantile of the rejected ones. ``chosen - 2 tau`` lies two temperatures below: a rejected answer
    as likely as the chosen ones then has a weight of .88. A number stands for itself.

    Measure once, at the start of stage 2, and freeze: a floor that follows the policy would let negatives that are
    pushed down stay "hard" forever.

    Args:
        rule: as above.
        lbar: ``(n,)`` mean log-probs of the answers of each role, nats per token; a role may be missing.
        temperature: tau of :func:`cooling_weight`.

    Raises:
        ConfigError: the rule is unknown, or there is nothing to measure.

    Example:
        >>> lbar = {Role.CHOSEN: torch.tensor([-0.5]), Role.REJECTED: torch.tensor([-4.0, -2.0])}
        >>> [measure_floor(rule, lbar=lbar, temperature=0.3) for rule in ("mean", "chosen - 2 tau")]
        [-3.0, -1.1]
    """
    if not isinstance(rule, str):
        return float(rule)
    known = floor_rule(rule)
    if known is None:
        raise ConfigError(f"cooling.floor is `{rule}`; write `chosen - 2 tau`, `gentle`, `mean` or nats per token.")
    of_role = {role: values for role, values in lbar.items() if len(values)}
    wanted = {"chosen": Role.CHOSEN, "gentle": Role.GENTLE}.get(known.statistic, Role.REJECTED)
    measured = of_role.get(Role.REJECTED if wanted not in of_role and known.statistic == "gentle" else wanted)
    if measured is None:
        raise ConfigError(
            f"the cooling floor is `{rule}`, but there are no training rows whose answers could be measured. Write a "
            "number instead, such as -2.0."
        )
    quantile = known.statistic.startswith("quantile:")
    level = float(known.statistic.removeprefix("quantile:")) if quantile else None
    middle = measured.double().mean() if level is None else torch.quantile(measured.double(), level)
    return middle.item() - known.taus * temperature
