r"""The objective of stage 2: one family of preference losses behind one interface, and cooling as a modifier of each.

Every loss takes :class:`Pairs` and gives ``(pairs,)`` losses. **Cooling puts w_c * Delta_l in the place of Delta_l**,
wherever a loss reads it: that one product is ``pairs.cooled``. So w_c = 1 is the published loss, and at w_c = 0 the
rejected answer has no pull in any of them. Losses that read no rejected answer are not changed.

    sigmoid     -log sigmoid(beta * (Delta_w - w_c * Delta_l))                          DPO, CW-DPO
    robust      [(1 - eps) * sigmoid loss - eps * sigmoid loss of the flipped pair] / (1 - 2 eps)
    ipo         (Delta_w / L_w - w_c * Delta_l / L_l - 1 / (2 beta))^2
    simpo       -log sigmoid(beta * (lbar_w - w_c * lbar_l) - gamma)
    dpop        -log sigmoid(beta * (Delta_w - w_c * Delta_l - lambda * max(0, -Delta_w)))
    cal_dpo     -log sigmoid(Delta_w - w_c * Delta_l) + v * [(Delta_w - 1/(2 beta))^2 + (w_c * Delta_l + 1/(2 beta))^2]
    beta_dpo    -log sigmoid(beta * (1 + alpha * (E[M] - M_0)) * (Delta_w - w_c * Delta_l))
    wpo         w(x, y_w) * w(x, y_l) * sigmoid loss
    ld_dpo      the sigmoid loss of Delta' = Delta of the first min(L_w, L_l) tokens + alpha * Delta of the others
    apo_zero    1 - sigmoid(beta * Delta_w) + sigmoid(beta * w_c * Delta_l)
    apo_down    sigmoid(beta * Delta_w) + 1 - sigmoid(beta * (Delta_w - w_c * Delta_l))
    bco         -log sigmoid(beta * Delta_w - delta) - log sigmoid(-(beta * w_c * Delta_l - delta))
    nll         -lbar_w
    anchor      -log sigmoid(beta * Delta_w - delta)
    image       -log sigmoid(beta * (Delta_w - Delta_w under a crop of the image))

A weighted sum of them is an objective too: DPO with NLL is ``{sigmoid: 1, nll: 1}``, MPO (arXiv 2411.10442) is
``{sigmoid: 0.8, bco: 0.2, nll: 1}``, mDPO (arXiv 2406.11839) ``{sigmoid: 1, image: 1, anchor: 1}``: see
:func:`preference_loss`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cwdpo.batch import masked_mean
from cwdpo.config.recipe import PreferenceLoss


class Pairs(NamedTuple):
    """What a loss may read of preference pairs. All are ``(pairs,)``; log-probs in nats."""

    chosen: Tensor
    """Delta_w = log pi(y_w|x) - log pi_ref(y_w|x), summed over tokens."""

    rejected: Tensor
    """Delta_l, the same of the rejected answer."""

    weight: Tensor
    """w_c from :func:`cwdpo.cooling.cooling_weight`; 1 without cooling."""

    chosen_mean: Tensor
    """lbar(y_w|x), nats per token."""

    rejected_mean: Tensor
    """lbar(y_l|x)."""

    chosen_length: Tensor
    """L_w, tokens."""

    rejected_length: Tensor
    """L_l, tokens."""

    on_policy: Tensor | None = None
    """w(x, y_w) * w(x, y_l): how like samples of the policy the two answers are, without gradient. For ``wpo``."""

    chosen_public: Tensor | None = None
    """Delta_w of the first min(L_w, L_l) tokens alone. For ``ld_dpo``."""

    rejected_public: Tensor | None = None
    """Delta_l of the first min(L_w, L_l) tokens alone. For ``ld_dpo``."""

    cropped: Tensor | None = None
    """Delta of the chosen answer under a crop of its prompt's images. For ``image``."""

    has_image: Tensor | None = None
    """Whether the prompt has any. For ``image``."""

    @property
    def cooled(self) -> Tensor:
        """``(pairs,)`` w_c * Delta_l."""
        return self.weight * self.rejected


def cw_dpo_loss(chosen_logratio: Tensor, rejected_logratio: Tensor, weight: Tensor, *, beta: float) -> Tensor:
    r"""Cooling-weighted DPO loss of each preference pair, CW-DPO, arXiv 2510.11978.

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


def dpo_loss(pairs: Pairs, *, beta: float) -> Tensor:
    """DPO, arXiv 2305.18290, equation 7; with cooling :func:`cw_dpo_loss`. ``(pairs,)``."""
    return cw_dpo_loss(pairs.chosen, pairs.rejected, pairs.weight, beta=beta)


def robust_loss(pairs: Pairs, *, beta: float, noise: float) -> Tensor:
    r"""Robust DPO, arXiv 2403.00409: unbiased where a share of the pairs is the wrong way round.

        z = beta * (Delta_w - w_c * Delta_l)
        loss = [eps * log sigmoid(-z) - (1 - eps) * log sigmoid(z)] / (1 - 2 eps)

    Cooled, z is that of CW-DPO in both terms. ``noise`` is eps, the share of flipped pairs, in [0, 0.5). ``(pairs,)``.
    """
    z = beta * (pairs.chosen - pairs.cooled)
    return (noise * F.logsigmoid(-z) - (1 - noise) * F.logsigmoid(z)) / (1 - 2 * noise)


def ipo_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""IPO, arXiv 2310.12036, equation 17 (its tau is ``beta``): the margin has a target, and is pushed no further.

        loss = (Delta_w / L_w - w_c * Delta_l / L_l - 1 / (2 beta))^2

    Per token, as TRL has it after the authors' word; the paper does not say. Cooled, an easy negative counts less
    towards the target, which the chosen answer then has to reach by itself. ``(pairs,)``.
    """
    margin = pairs.chosen / pairs.chosen_length - pairs.cooled / pairs.rejected_length
    return (margin - 1 / (2 * beta)).square()


def simpo_loss(pairs: Pairs, *, beta: float, margin: float) -> Tensor:
    r"""SimPO, arXiv 2405.14734, equation 6: no reference, log-probs per token, and a target margin.

        loss = -log sigmoid(beta * (lbar_w - w_c * lbar_l) - gamma)

    There is no Delta_l to cool, so w_c scales lbar_l. As lbar_l is negative, this also lowers the margin of an easy
    negative, by beta * (1 - w_c) * lbar_l: its pair then mostly raises the chosen answer. ``margin`` is gamma >= 0.
    ``(pairs,)``.
    """
    return -F.logsigmoid(beta * (pairs.chosen_mean - pairs.weight * pairs.rejected_mean) - margin)


def dpop_loss(pairs: Pairs, *, beta: float, penalty: float) -> Tensor:
    r"""DPO-Positive (Smaug), arXiv 2402.13228, equation 3: a chosen answer below its reference costs extra.

        loss = -log sigmoid(beta * (Delta_w - w_c * Delta_l - lambda * max(0, -Delta_w)))

    Cooling leaves the penalty, which reads the chosen answer alone. ``penalty`` is lambda >= 0. ``(pairs,)``.
    """
    shortfall = (-pairs.chosen).clamp(min=0)
    return -F.logsigmoid(beta * (pairs.chosen - pairs.cooled - penalty * shortfall))


def cal_dpo_loss(pairs: Pairs, *, beta: float, weight: float) -> Tensor:
    r"""Cal-DPO, arXiv 2412.14516: log-ratios also have targets of their own, +1/(2 beta) and -1/(2 beta).

        loss = -log sigmoid(Delta_w - w_c * Delta_l) + v * [(Delta_w - 1/(2 beta))^2 + (w_c * Delta_l + 1/(2 beta))^2]

    ``beta`` stands in the targets alone. ``weight`` is v >= 0; the authors' code takes 0.5. Cooled, the second target
    pulls with w_c: an easy negative is not driven down to it. ``(pairs,)``.
    """
    target = 1 / (2 * beta)
    calibration = (pairs.chosen - target).square() + (pairs.cooled + target).square()
    return -F.logsigmoid(pairs.chosen - pairs.cooled) + weight * calibration


def reward_margin(pairs: Pairs, *, beta: float) -> Tensor:
    """M = beta * (Delta_w - w_c * Delta_l) of each pair without gradient, which beta-DPO averages. ``(pairs,)``."""
    return beta * (pairs.chosen - pairs.cooled).detach()


def beta_dpo_loss(pairs: Pairs, *, beta: float, scale: float, gap: Tensor | float) -> Tensor:
    r"""beta-DPO, arXiv 2407.08639, its beta for a whole step: larger where the pairs are easier than usual.

        loss = -log sigmoid(beta' * (Delta_w - w_c * Delta_l)),  beta' = beta * (1 + alpha * (E[M] - M_0))

    ``scale`` is alpha >= 0; ``gap`` is E[M] - M_0, ``()``: the mean :func:`reward_margin` of the step, less the running
    mean of the steps before. beta' is at least 0.001, as in the authors' code, and has no gradient. That code leaves
    beta out of M, so that its alpha is alpha * beta here. Cooled, M is the cooled margin. The paper's filter, which
    leaves out pairs with an unusual M, is not part of this. ``(pairs,)``.
    """
    gap = gap if isinstance(gap, Tensor) else pairs.chosen.new_full((), gap)
    dynamic = (gap.to(pairs.chosen) * scale + 1) * beta
    return -F.logsigmoid(dynamic.detach().clamp(min=1e-3) * (pairs.chosen - pairs.cooled))


def wpo_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""WPO, arXiv 2406.11827, with its "sampled alignment": pairs count by how likely the policy is to say them.

        loss = w(x, y_w) * w(x, y_l) * -log sigmoid(beta * (Delta_w - w_c * Delta_l)),
        w(x, y) = exp( (1/L) sum_t [log pi(y_t) - log sum_v pi(v)^2] )

    w(x, y) is 1 where each token is as likely as a sampled one is on average (see :func:`on_policy_weight`). It has no
    gradient. Both w(x, y_l) and w_c fall for an easy negative: WPO takes the whole pair back, cooling the rejected
    answer alone. ``(pairs,)``.
    """
    if pairs.on_policy is None:
        raise ValueError("wpo reads Pairs.on_policy; make it of on_policy_weight of both answers.")
    return pairs.on_policy.detach() * dpo_loss(pairs, beta=beta)


def on_policy_weight(token: Tensor, collision: Tensor, mask: Tensor) -> Tensor:
    """w(x, y) of :func:`wpo_loss` for each answer, ``(A,)``; from ``(A, T)`` log pi(y_t), log sum_v pi(v)^2, and where
    the answers' tokens are.

    Example:
        >>> quarter = torch.tensor([[0.25]]).log()  # one of 4 equally likely tokens; sum_v pi(v)^2 = 1/4
        >>> on_policy_weight(quarter, quarter, torch.tensor([[True]]))
        tensor([1.])
    """
    return masked_mean(token - collision, mask).exp().detach()


def ld_dpo_loss(pairs: Pairs, *, beta: float, alpha: float) -> Tensor:
    r"""LD-DPO, arXiv 2409.06411: tokens of the longer answer beyond the length of the shorter count less.

        loss = -log sigmoid(beta * (Delta'_w - w_c * Delta'_l)),  Delta' = public + alpha * (Delta - public)

    ``public`` is Delta of the first min(L_w, L_l) tokens, ``alpha`` in [0, 1]; 1 is DPO. Policy and reference are cut
    alike, so that the reward of step 0 is 0. Cooling scales Delta'_l. ``(pairs,)``.
    """
    if pairs.chosen_public is None or pairs.rejected_public is None:
        raise ValueError("ld_dpo reads Pairs.chosen_public and rejected_public; give the log-ratios of shared lengths.")
    chosen = pairs.chosen_public + alpha * (pairs.chosen - pairs.chosen_public)
    rejected = pairs.rejected_public + alpha * (pairs.rejected - pairs.rejected_public)
    return cw_dpo_loss(chosen, rejected, pairs.weight, beta=beta)


def apo_zero_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""APO-zero, arXiv 2408.06266, equation 7: for chosen answers better than the model's; they rise, rejected fall.

        loss = 1 - sigmoid(beta * Delta_w) + sigmoid(beta * w_c * Delta_l)

    Cooled, the second term is flat for an easy negative. ``(pairs,)``.
    """
    return 1 - torch.sigmoid(beta * pairs.chosen) + torch.sigmoid(beta * pairs.cooled)


def apo_down_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""APO-down, arXiv 2408.06266, equation 8: for chosen answers worse than the model's; both fall, rejected more.

        loss = sigmoid(beta * Delta_w) + 1 - sigmoid(beta * (Delta_w - w_c * Delta_l))

    Cooled, what is left for an easy negative is the chosen answer, lowered by the first term and raised by the second.
    ``(pairs,)``.
    """
    return torch.sigmoid(beta * pairs.chosen) + 1 - torch.sigmoid(beta * (pairs.chosen - pairs.cooled))


def mean_reward(pairs: Pairs, *, beta: float) -> Tensor:
    """Mean of both answers' rewards, beta * (Delta_w + w_c * Delta_l) / 2, of each pair without gradient, which BCO
    averages. ``(pairs,)``."""
    return beta * (pairs.chosen + pairs.cooled).detach() / 2


def bco_loss(pairs: Pairs, *, beta: float, shift: Tensor | float) -> Tensor:
    r"""BCO, arXiv 2404.04656, MPO's "quality" term: each answer alone is classified as good or bad by its reward.

        loss = -log sigmoid(beta * Delta_w - delta) - log sigmoid(-(beta * w_c * Delta_l - delta))

    ``shift`` is delta, the running :func:`mean_reward` of the steps before, ``()``. TRL's ``bco_pair`` has delta = 0.
    Cooled, the second term is flat for an easy negative. ``(pairs,)``.
    """
    return -F.logsigmoid(beta * pairs.chosen - shift) - F.logsigmoid(-(beta * pairs.cooled - shift))


def nll_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""NLL of the chosen answer per token, which keeps it from falling; with ``sigmoid`` it is the loss of iterative
    reasoning preference optimisation (RPO), arXiv 2404.19733, and MPO's "generation" term.

        loss = -lbar_w

    Reads no rejected answer, so that cooling changes nothing; ``beta`` neither. ``(pairs,)``.
    """
    return -pairs.chosen_mean


def anchor_loss(pairs: Pairs, *, beta: float, reward: float) -> Tensor:
    r"""mDPO's anchor, arXiv 2406.11839: the chosen answer's reward is kept above a level.

        loss = -log sigmoid(beta * Delta_w - delta)

    ``reward`` is delta; the paper takes 0. Reads no rejected answer, so that cooling changes nothing. ``(pairs,)``.
    """
    return -F.logsigmoid(beta * pairs.chosen - reward)


def image_loss(pairs: Pairs, *, beta: float) -> Tensor:
    r"""mDPO's image-conditional term, arXiv 2406.11839: the chosen answer is preferred under its own image.

        loss = -log sigmoid(beta * (Delta_w - Delta_w under a crop of the image))

    0 where the prompt has no image. Reads no rejected answer, so that cooling changes nothing. ``(pairs,)``.
    """
    if pairs.cropped is None or pairs.has_image is None:
        raise ValueError("image reads Pairs.cropped and has_image; give the log-ratios under crops.")
    return torch.where(pairs.has_image, -F.logsigmoid(beta * (pairs.chosen - pairs.cropped)), 0.0)


Loss: TypeAlias = Callable[..., Tensor]
"""From :class:`Pairs`, ``beta`` and the loss's own parameters to ``(pairs,)``."""

LOSSES: Mapping[PreferenceLoss, Loss] = {
    "sigmoid": dpo_loss,
    "robust": robust_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "dpop": dpop_loss,
    "cal_dpo": cal_dpo_loss,
    "beta_dpo": beta_dpo_loss,
    "wpo": wpo_loss,
    "ld_dpo": ld_dpo_loss,
    "apo_zero": apo_zero_loss,
    "apo_down": apo_down_loss,
    "bco": bco_loss,
    "nll": nll_loss,
    "anchor": anchor_loss,
    "image": image_loss,
}
"""By the name that ``stage2.loss`` has for it."""


def preference_loss(
    pairs: Pairs, weights: Mapping[PreferenceLoss, float], *, beta: float, parameters: Mapping[str, Tensor | float]
) -> Tensor:
    """Weighted sum of some losses of each pair.

    Args:
        pairs: ``(pairs,)`` each, what all of the losses read.
        weights: of each loss, by its name in :data:`LOSSES`.
        beta: inverse temperature of the implicit reward, > 0, the same for all of them.
        parameters: the losses' own ones as ``<loss>_<argument>``, such as ``dpop_penalty``; those of others are left.

    Returns:
        ``(pairs,)`` losses.

    Example:
        >>> one = torch.ones(1)
        >>> pairs = Pairs(one, -one, one, chosen_mean=-one, rejected_mean=-one, chosen_length=one, rejected_length=one)
        >>> preference_loss(pairs, {"sigmoid": 1.0, "nll": 0.5}, beta=0.5, parameters={})
        tensor([0.8133])
    """
    total = torch.zeros_like(pairs.chosen)
    for name, weight in weights.items():
        prefix = f"{name}_"
        own = {key.removeprefix(prefix): value for key, value in parameters.items() if key.startswith(prefix)}
        total = total + weight * LOSSES[name](pairs, beta=beta, **own)
    return total
