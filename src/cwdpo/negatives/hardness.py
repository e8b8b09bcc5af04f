"""How hard a negative is, and filters by it: lbar, CHES similarity and length."""

from collections.abc import Sequence

from torch import Tensor

from cwdpo.negatives.filtering import quantile
from cwdpo.negatives.refreshes import Candidate

TOO_EASY, TOO_SIMILAR = "too_easy", "too_similar"


def drop_easy(candidates: Sequence[Candidate], rule: float | str) -> float | None:
    """Give the reason ``too_easy`` to negatives below a floor of lbar.

    Args:
        candidates: those that are still kept have an ``lbar``.
        rule: nats per token, or ``quantile:q`` of the kept ones' lbar.

    Returns:
        The floor in nats per token; None where nothing was kept.
    """
    kept = [candidate for candidate in candidates if candidate.reason is None]
    if not kept:
        return None
    floor = threshold([_lbar(candidate) for candidate in kept], rule)
    for candidate in kept:
        if _lbar(candidate) < floor:
            candidate.reason = TOO_EASY
    return floor


def drop_similar(candidates: Sequence[Candidate], rule: float | str) -> float | None:
    """Give the reason ``too_similar`` to negatives above a ceiling of CHES: pushing them drags the right answer along.

    Args:
        candidates: those that are still kept have a ``ches``.
        rule: a number, or ``quantile:q`` of the kept ones' CHES.

    Returns:
        The ceiling; None where nothing was kept.
    """
    kept = [candidate for candidate in candidates if candidate.reason is None]
    values = [candidate.ches for candidate in kept if candidate.ches is not None]
    if len(values) < len(kept):
        raise ValueError("a candidate has no CHES; measure it before filtering by similarity")
    if not kept:
        return None
    ceiling = threshold(values, rule)
    for candidate, value in zip(kept, values, strict=True):
        if value > ceiling:
            candidate.reason = TOO_SIMILAR
    return ceiling


def threshold(values: Sequence[float], rule: float | str) -> float:
    """A number as it is, or ``quantile:q`` of the values.

    Example:
        >>> threshold([-3.0, -1.0, -2.0], "quantile:0.5"), threshold([-3.0], -1.5)
        (-2.0, -1.5)
    """
    if isinstance(rule, str):
        return quantile(values, float(rule.partition(":")[2]))
    return float(rule)


def ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""Centred hidden embedding similarity: how much pushing y_l down drags y_w along.

        CHES(x, y_w, y_l) = <S_w, S_l> - ||S_w||^2,   S = sum_t h(x, y_<t)        arXiv 2410.08847, definition 2

    The larger, the more alike the two are to the model, and the likelier that DPO lowers y_w too.

    Args:
        chosen: ``(T_w, d)`` hidden states of the last layer at the positions that predict y_w's tokens.
        rejected: ``(T_l, d)`` the same of y_l.

    Returns:
        ``()``.

    Example:
        >>> import torch
        >>> ches(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))  # 3 - 5
        tensor(-2.)
    """
    if chosen.ndim != 2 or rejected.ndim != 2 or chosen.shape[1] != rejected.shape[1]:
        raise ValueError(
            f"expected two (T, d) tensors of hidden states, got {tuple(chosen.shape)} and {tuple(rejected.shape)}. "
            "Call it for one pair at a time."
        )
    of_chosen, of_rejected = chosen.double().sum(dim=0), rejected.double().sum(dim=0)
    return (of_chosen @ of_rejected - of_chosen @ of_chosen).float()


def length_normalised_ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""CHES without its preference for long answers: ``<S_w/T_w, S_l/T_l> - ||S_w/T_w||^2`` (arXiv 2410.08847, app. A).

    Args:
        chosen: as in :func:`ches`.
        rejected: as in :func:`ches`.
    """
    return ches(chosen.double().mean(dim=0, keepdim=True), rejected.double().mean(dim=0, keepdim=True))


def _lbar(candidate: Candidate) -> float:
    if candidate.lbar is None:
        raise ValueError(f"the candidate {candidate.text!r} has no lbar; measure it before filtering by hardness")
    return candidate.lbar
