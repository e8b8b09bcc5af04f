"""Batches as rows of token ids: what an engine is, the two layouts, and a batch taken apart and put together again.

Prompts that cannot stand in one forward pass without changing each other are kept apart. Mllama attends from every
token to every image of its row, and its processor gives a prompt without images no such entry at all: filled up to
another prompt's images it would answer differently. So prompts share a pass only when their per-token entries have the
same names and shapes; for every other family that is the whole batch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Batch, Detail, Integers, image_entries, on_device, token_names

PaddingSide = Literal["left", "right"]

PROMPT, PADDING = 0, -1
"""Branches that are not answers; answers count from 1 in each row."""


@dataclass(frozen=True)
class Cost:
    """What one prompt with its answers is to a forward pass."""

    rows: int
    tokens: int
    """Of the longest of its rows, image tokens included."""


class Engine(Protocol):
    """How a batch is laid out in rows is the engine's business alone; the numbers are the same for every engine."""

    report: dict[str, Any]
    """What the engine decided, and on which numbers, for a run's records. JSON types only."""

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """Log-probs of every answer under a model of transformers, bare or wrapped (PEFT, DDP, FSDP).

        The batch is on the model's device; ``want`` are optional details to compute as well.
        """
        ...

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """What each prompt costs as this engine lays it out, which may have to check itself on the batch first."""
        ...


@dataclass(frozen=True)
class Layout:
    """Rows ready for the model, and where in them the answers' tokens are predicted."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward."""

    keep: Tensor
    """``(rows, m)`` positions in each row whose next token belongs to an answer, in ascending order; of a row with
    fewer than the others, its last one is repeated. What the models take as ``logits_to_keep``."""

    gather: Tensor
    """``(n,)`` for each answer token in the batch's answer order, which entry of the flattened ``keep`` predicts it."""

    read: Tensor
    """``(k,)`` the positions of ``keep``, each once, in the flattened ``(rows, length)``."""

    @property
    def shape(self) -> torch.Size:
        """Rows and length."""
        return self.inputs["input_ids"].shape

    def in_order(self, hidden: Tensor) -> Tensor:
        """``(n, ...)`` in the batch's answer order, of values at the flattened ``keep``."""
        return hidden.index_select(0, self.gather)


def _predicting(inputs: dict[str, Tensor], row: Integers, position: Integers) -> Layout:
    """The layout of rows in which answer tokens are predicted at these ``(n,)`` places, in the batch's answer order."""
    device, (rows, length) = inputs["input_ids"].device, inputs["input_ids"].shape
    read, place = np.unique(row * length + position, return_inverse=True)
    row_of = read // length
    counts = np.bincount(row_of, minlength=rows)
    first = np.cumsum(counts) - counts
    # the number of each place within its row; those beyond a row's last are its last
    column = np.minimum(np.arange(counts.max())[None], counts[:, None] - 1)
    keep = read[first[:, None] + column] % length
    gather = row_of[place] * counts.max() + (place - first[row_of[place]])
    return Layout(inputs, on_device(keep, device), on_device(gather, device), on_device(read, device))


@dataclass(frozen=True)
class TreePlan:
    """Which tokens of each row may meet, and where each stands in ``[prompt | its own answer]``."""

    branch: Tensor
    """``(rows, length)`` 0 on the prompt, 1 to K on the answers, -1 on padding."""

    shift: Tensor
    """``(rows, length)`` how many tokens of other answers stand between the prompt and each token."""

    lengths: tuple[tuple[int, ...], ...]
    """Of each row, the tokens of its prompt and of each of its answers that has any in the row."""

    @property
    def logical(self) -> Tensor:
        """``(rows, length)`` the token's index in ``[prompt | its own answer]``."""
        return torch.arange(self.branch.shape[1], device=self.branch.device) - self.shift

    def allow(self, own: Tensor, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Cut the model's own mask across answers: a token sees its prompt and its own answer.

        ``own`` is whether the model lets the query see the key at their places in ``[prompt | their answer]``. The
        indices of the row, of the token that looks and of the one looked at broadcast against each other and ``own``.
        """
        queries, keys = self.branch[row, query], self.branch[row, key]
        seen = own & (queries != PADDING) & ((keys == queries) | (keys == PROMPT))
        # a query without any key would give NaN, so padding sees itself
        return seen | ((queries == PADDING) & (query == key))


def one_row_an_answer(batch: Batch, *, padding_side: PaddingSide = "right", answer_type: int | None = None) -> Layout:
    """``[prompt | answer]`` for every answer; the prompt's tokens and images are repeated for each of its answers."""
    prompts = [batch["prompts"][i] for i in batch["prompt_index"].tolist()]
    lengths = batch["lengths"].tolist()
    rows = [
        # the last token of an answer predicts nothing that is asked for, so it is left out of the row
        continue_prompt(prompt, ids[: length - 1], answer_type=answer_type)
        for prompt, ids, length in zip(prompts, batch["answer_ids"], lengths, strict=True)
    ]
    inputs = stack_tokens(rows, padding_side) | merge_images(prompts)
    # an answer is predicted by as many of its row's last real tokens: the prompt's last one predicts its first
    width = inputs["input_ids"].shape[1]
    ends = [row["input_ids"].shape[1] if padding_side == "right" else width for row in rows]
    places = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return _predicting(inputs, np.repeat(np.arange(len(rows)), batch["lengths"]), np.concatenate(places))


def one_row_a_prompt(batch: Batch, *, answer_type: int | None = None) -> tuple[Layout, TreePlan]:
    """Every prompt once with all its answers behind it, padded on the right.

    As in plain rows, the last token of each answer is left out. Every answer's first token is predicted by the same
    position, the prompt's last.
    """
    device = batch["answer_ids"].device
    lengths = batch["lengths"].tolist()
    owners = batch["prompt_index"].tolist()
    rows: list[dict[str, Tensor]] = []
    branches: list[list[int]] = []
    shifts: list[list[int]] = []
    predictors: list[tuple[int, int]] = []  # of each answer token, in answer order
    sizes: list[tuple[int, ...]] = []
    for i, prompt in enumerate(batch["prompts"]):
        start = prompt["input_ids"].shape[1]
        ids, branch, shift, size, before = [], [0] * start, [0] * start, [start], 0
        for a in (a for a, owner in enumerate(owners) if owner == i):
            extra = lengths[a] - 1
            ids.append(batch["answer_ids"][a, :extra])
            branch += [len(ids)] * extra
            shift += [before] * extra
            predictors += [(i, position) for position in (start - 1, *range(start + before, start + before + extra))]
            size += [extra] * (extra > 0)
            before += extra
        sizes.append(tuple(size))
        rows.append(continue_prompt(prompt, torch.cat(ids), answer_type=answer_type))
        branches.append(branch)
        shifts.append(shift)
    inputs = stack_tokens(rows, "right") | merge_images(batch["prompts"])
    length = inputs["input_ids"].shape[1]

    def pad(values: Sequence[list[int]], filler: int) -> Tensor:
        return on_device(np.array([each + [filler] * (length - len(each)) for each in values]), device)

    row, position = np.array(predictors).T
    plan = TreePlan(branch=pad(branches, PADDING), shift=pad(shifts, 0), lengths=tuple(sizes))
    return _predicting(inputs, row, position), plan


def prompts_alone(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One row a prompt, left-padded and without an answer: what ``generate`` takes. They are of one group."""
    nothing = prompts[0]["input_ids"].new_empty(0)
    rows = [continue_prompt(prompt, nothing, answer_type=None) for prompt in prompts]
    return stack_tokens(rows, "left") | merge_images(prompts)


def continue_prompt(prompt: dict[str, Tensor], extra_ids: Tensor, *, answer_type: int | None) -> dict[str, Tensor]:
    """Append ``(n,)`` tokens; every other per-token entry goes on as at the prompt's last token, which is text.

    Images are left out. ``answer_type`` is the tokens' ``token_type_ids``, for models that mark answers by it.
    """
    row = {}
    for name in token_names(prompt):
        value = prompt[name]
        tail = value[:, -1:].expand(-1, len(extra_ids), *value.shape[2:])
        if name == "token_type_ids" and answer_type is not None:
            tail = torch.full_like(tail, answer_type)
        row[name] = torch.cat([value, tail], dim=1)
    row["input_ids"] = torch.cat([prompt["input_ids"], extra_ids[None]], dim=1)
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    return row


def padded_length(length: int, device: torch.device) -> int:
    """The length that rows are padded to: on GPUs a multiple of 64, so that kernels are chosen and compiled for a few
    lengths and not for hundreds, and find what they read aligned."""
    return -(-length // _MULTIPLE) * _MULTIPLE if device.type == "cuda" else length


_MULTIPLE = 64


def stack_tokens(rows: Sequence[dict[str, Tensor]], padding_side: PaddingSide) -> dict[str, Tensor]:
    """Rows of unequal length as ``(rows, length, ...)`` tensors; the attention mask is 0 on the padding.

    The length is :func:`padded_length` of the longest row.
    """
    ids = [row["input_ids"] for row in rows]
    longest = padded_length(max(each.shape[1] for each in ids), ids[0].device)

    def pad(value: Tensor, name: str) -> Tensor:
        # The row's last token is the padding: unlike token 0 or a pad token it is sure not to be an image placeholder.
        filler = value[:, -1:].expand(-1, longest - value.shape[1], *value.shape[2:])
        filler = torch.zeros_like(filler) if name == "attention_mask" else filler
        return torch.cat([value, filler] if padding_side == "right" else [filler, value], dim=1)

    return {name: torch.cat([pad(row[name], name) for row in rows]) for name in rows[0]}


def merge_images(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Everything that is not per token, joined along the first dimension, other dimensions padded with zeros.

    Processors either stack images (or patches) along the first dimension or give each prompt one entry with its images
    along the second; models read both in reading order, so joining serves both without knowing any name.
    """
    merged: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        for name, value in image_entries(prompt).items():
            merged.setdefault(name, []).append(value)
    return {name: torch.cat(_pad_to_largest(values)) for name, values in merged.items()}


def pass_groups(prompts: Sequence[dict[str, Tensor]]) -> list[list[int]]:
    """The positions of the prompts that may share a forward pass, a list for each pass, in the order of their first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        kind = tuple(sorted((name, prompt[name].shape[2:]) for name in token_names(prompt)))
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def in_groups(batch: Batch, compute: Callable[[Batch], AnswerLogprobs]) -> AnswerLogprobs:
    """``compute`` of each group of prompts that may share a forward pass, joined in the batch's answer order."""
    return in_parts(batch, pass_groups(batch["prompts"]), compute)


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
    back = on_device(np.argsort(np.concatenate(answers)), batch["answer_ids"].device)
    names = [field.name for field in fields(AnswerLogprobs) if isinstance(getattr(computed[0], field.name), Tensor)]
    joined = {name: torch.cat([getattr(part, name) for part in computed])[back] for name in names}
    return AnswerLogprobs(**joined | {"mask": batch["answer_mask"]}, precision=computed[0].precision)


def select_prompts(batch: Batch, prompts: list[int]) -> tuple[Batch, Integers]:
    """Some of a batch's prompts with all their answers, as a batch; and ``(n,)`` which answers those are."""
    answers = np.flatnonzero(np.isin(batch["prompt_index"], prompts))
    return select_answers(batch, answers), answers


def select_answers(batch: Batch, answers: Integers | Sequence[int]) -> Batch:
    """``(n,)`` of a batch's answers, in their order, and their prompts, as a batch."""
    places = np.asarray(answers, dtype=np.int64)
    owners, prompt_index = np.unique(batch["prompt_index"][places], return_inverse=True)
    prompts, index = owners.tolist(), on_device(places, batch["answer_ids"].device)
    part = Batch(
        row_index=batch["row_index"][owners],
        prompts=[batch["prompts"][i] for i in prompts],
        prompt_index=prompt_index,
        roles=batch["roles"][places],
        lengths=batch["lengths"][places],
        answer_ids=batch["answer_ids"].index_select(0, index),
        answer_mask=batch["answer_mask"].index_select(0, index),
        keys=[batch["keys"][i] for i in places],
    )
    if "image_keys" in batch:
        part["image_keys"] = [batch["image_keys"][i] for i in prompts]
    return part


def tree_costs(batch: Batch) -> list[Cost]:
    """The cost of each prompt, laid out as one row with all its answers."""
    answers = np.bincount(batch["prompt_index"], weights=batch["lengths"], minlength=len(batch["prompts"]))
    return [Cost(1, prompt["input_ids"].shape[1] + int(n)) for prompt, n in zip(batch["prompts"], answers, strict=True)]


def plain_costs(batch: Batch) -> list[Cost]:
    """The cost of each prompt, laid out as one row per answer."""
    answers: list[list[int]] = [[] for _ in batch["prompts"]]
    for owner, length in zip(batch["prompt_index"].tolist(), batch["lengths"].tolist(), strict=True):
        answers[owner].append(length)
    return [
        Cost(max(len(lengths), 1), prompt["input_ids"].shape[1] + max(lengths, default=0))
        for prompt, lengths in zip(batch["prompts"], answers, strict=True)
    ]


def parts_within(costs: Sequence[Cost], budget: int) -> list[list[int]]:
    """Divide prompts into parts of similar length, each within a budget of tokens, padding included.

    A prompt that alone exceeds the budget is a part by itself.

    Example:
        >>> parts_within([Cost(1, 10), Cost(1, 90), Cost(1, 20), Cost(1, 100)], 200)
        [[3, 1], [2, 0]]
        >>> parts_within([Cost(2, 10), Cost(2, 90), Cost(2, 20), Cost(2, 100)], 200)
        [[3], [1], [2, 0]]
    """
    parts: list[list[int]] = []
    rows = 0
    for i in sorted(range(len(costs)), key=lambda i: costs[i].tokens, reverse=True):
        if parts and (rows + costs[i].rows) * costs[parts[-1][0]].tokens <= budget:
            parts[-1].append(i)
            rows += costs[i].rows
        else:
            parts.append([i])
            rows = costs[i].rows
    return parts


def _pad_to_largest(values: Sequence[Tensor]) -> list[Tensor]:
    largest = [max(value.shape[d] for value in values) for d in range(1, values[0].ndim)]
    padded = []
    for value in values:
        missing = [size - value.shape[d + 1] for d, size in enumerate(largest)]
        padding = [n for size in reversed(missing) for n in (0, size)]
        padded.append(F.pad(value, padding) if any(missing) else value)
    return padded
