"""Prompts that cannot stand in one forward pass without changing each other, taken apart and put together again.

Mllama attends from every token to every image of its row, and its processor gives a prompt without images no such entry
at all: filled up to another prompt's images it would answer differently. So prompts share a pass only when their
per-token entries have the same names and shapes; for every other family that is the whole batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from cwdpo.batch import AnswerLogprobs, Batch, token_names


def in_groups(batch: Batch, compute: Callable[[Batch], AnswerLogprobs]) -> AnswerLogprobs:
    """``compute`` of each group of prompts that may share a forward pass, joined in the batch's answer order."""
    kinds = [_kind(prompt) for prompt in batch["prompts"]]
    groups = [[i for i, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]
    return in_parts(batch, groups, compute)


def in_parts(
    batch: Batch, parts: Sequence[Sequence[int]], compute: Callable[[Batch], AnswerLogprobs]
) -> AnswerLogprobs:
    """``compute`` of each part of a batch's prompts, joined in the batch's answer order."""
    if len(parts) == 1:
        return compute(batch)
    computed, answers = [], []
    for prompts in parts:
        part, index = select_prompts(batch, sorted(prompts))
        computed.append(compute(part))
        answers.append(index)
    return _join(computed, torch.cat(answers), batch["answer_mask"])


def select_prompts(batch: Batch, prompts: list[int]) -> tuple[Batch, Tensor]:
    """Some of a batch's prompts with all their answers, as a batch; and ``(n,)`` which answers those are."""
    wanted = torch.tensor(prompts, device=batch["prompt_index"].device)
    answers = torch.isin(batch["prompt_index"], wanted).nonzero()[:, 0]
    return select_answers(batch, answers), answers


def select_answers(batch: Batch, answers: Tensor) -> Batch:
    """``(n,)`` of a batch's answers, in their order, and their prompts, as a batch."""
    owners, prompt_index = torch.unique(batch["prompt_index"][answers], return_inverse=True)
    prompts, places = owners.tolist(), answers.tolist()
    part = Batch(
        row_index=batch["row_index"][owners],
        prompts=[batch["prompts"][i] for i in prompts],
        prompt_index=prompt_index,
        roles=batch["roles"][answers],
        answer_ids=batch["answer_ids"][answers],
        answer_mask=batch["answer_mask"][answers],
        keys=[batch["keys"][i] for i in places],
    )
    if "image_keys" in batch:
        part["image_keys"] = [batch["image_keys"][i] for i in prompts]
    return part


def _kind(prompt: dict[str, Tensor]) -> tuple[tuple[str, torch.Size], ...]:
    return tuple(sorted((name, prompt[name].shape[2:]) for name in token_names(prompt)))


def _join(parts: list[AnswerLogprobs], answers: Tensor, mask: Tensor) -> AnswerLogprobs:
    back = torch.argsort(answers)
    names = [field.name for field in fields(AnswerLogprobs) if isinstance(getattr(parts[0], field.name), Tensor)]
    joined = {name: torch.cat([getattr(part, name) for part in parts])[back] for name in names}
    return AnswerLogprobs(**joined | {"mask": mask}, precision=parts[0].precision)
