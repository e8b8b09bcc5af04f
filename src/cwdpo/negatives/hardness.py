"""How hard a negative is, and filters by it: lbar, CHES similarity and length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine.forward import answer_type, capture_head_input
from cwdpo.engine.layout import one_row_an_answer
from cwdpo.engine.plain import PlainEngine
from cwdpo.models.parts import bare_model
from cwdpo.negatives.candidates import Candidate
from cwdpo.negatives.filtering import quantile

TOO_EASY, TOO_SIMILAR = "too_easy", "too_similar"


@dataclass(frozen=True, slots=True)
class Hardness:
    """Of one negative, as a model sees it."""

    lbar: float
    """Nats per token."""

    ches: float
    """Length-normalised CHES similarity to the right answer."""


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


def measure_hardness(model: Any, processor: Any, rows: Sequence[Row], *, batch_size: int = 8) -> list[list[Hardness]]:
    """lbar and length-normalised CHES of every negative.

    Args:
        model: on its device; its train and eval modes are put back.
        processor: the model's.
        rows: with negatives; one without has an empty list.
        batch_size: rows at a time.
    """
    collate = AnswerCollator(Encoder(processor), roles=(Role.CHOSEN, Role.REJECTED))
    found: list[list[Hardness]] = []
    with torch.no_grad(), eval_mode(model):
        for start in range(0, len(rows), batch_size):
            batch = collate(list(enumerate(rows[start : start + batch_size])))
            found += _of_batch(model, send_to_device(batch, model.device))
    return found


def answer_states(model: Any, batch: Batch) -> list[Tensor]:
    """``(T, d)`` for each answer: the last layer's hidden states at the positions that predict its tokens."""
    bare = bare_model(model)
    layout = one_row_an_answer(batch, answer_type=answer_type(bare))
    with capture_head_input(bare.get_output_embeddings()) as captured:
        model(**layout.inputs, use_cache=False, logits_to_keep=layout.predicts)
    (hidden,) = captured.hidden
    return list(torch.split(hidden, batch["answer_mask"].sum(dim=-1).tolist()))


def batch_ches(model: Any, batch: Batch) -> list[list[float]]:
    """Length-normalised CHES of every prompt's negatives to its chosen answer, in the batch's order.

    Args:
        model: in eval mode.
        batch: with one chosen answer a prompt.
    """
    states = answer_states(model, batch)
    found: list[list[float]] = [[] for _ in batch["prompts"]]
    chosen: dict[int, Tensor] = {}
    for state, owner, role in zip(states, batch["prompt_index"].tolist(), batch["roles"].tolist(), strict=True):
        if role == Role.CHOSEN:
            chosen[owner] = state
        else:
            found[owner].append(length_normalised_ches(chosen[owner], state).item())
    return found


def _of_batch(model: Any, batch: Batch) -> list[list[Hardness]]:
    means = PlainEngine().logprobs(model, batch).mean[batch["roles"] != Role.CHOSEN].tolist()
    lbars = iter(means)  # in the same order: a prompt's answers stand together
    return [[Hardness(next(lbars), ches) for ches in of_prompt] for of_prompt in batch_ches(model, batch)]
