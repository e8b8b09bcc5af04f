"""Hardness of negatives as a model sees it: lbar and CHES."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import AnswerCollator
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.engine.forward import answer_type, bare_model
from cwdpo.engine.head import capture_head_input
from cwdpo.engine.layout import one_row_an_answer
from cwdpo.engine.plain import PlainEngine
from cwdpo.eval_mode import eval_mode
from cwdpo.negatives.filtered_files import Hardness
from cwdpo.negatives.hardness import length_normalised_ches


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
