"""How prompts and answers become rows of token ids: what both layouts share, and the plain one, one row an answer.

Prompts that cannot stand in one forward pass without changing each other, taken apart and put together again.

Mllama attends from every token to every image of its row, and its processor gives a prompt without images no such entry
at all: filled up to another prompt's images it would answer differently. So prompts share a pass only when their
per-token entries have the same names and shapes; for every other family that is the whole batch.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from cwdpo.batch import AnswerLogprobs, Batch, Detail, image_entries, token_names

if TYPE_CHECKING:
    from cwdpo.engine import Engine


PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Layout:
    """Rows ready for the model, and where in them the answers' tokens are predicted."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward."""

    predicts: Tensor
    """``(rows, length)`` True at each position whose next token belongs to an answer."""

    gather: Tensor | None = None
    """``(n,)`` for each answer token in the batch's answer order, which True entry of ``predicts`` predicts it; None
    where that is the order of the entries already."""


def one_row_an_answer(batch: Batch, *, padding_side: PaddingSide = "right", answer_type: int | None = None) -> Layout:
    """``[prompt | answer]`` for every answer; the prompt's tokens and images are repeated for each of its answers.

    Args:
        batch: see :class:`cwdpo.batch.Batch`.
        padding_side: where shorter rows are filled.
        answer_type: see :func:`continue_prompt`.
    """
    prompts = [batch["prompts"][i] for i in batch["prompt_index"].tolist()]
    lengths = batch["answer_mask"].sum(dim=-1).tolist()
    rows = [
        # the last token of an answer predicts nothing that is asked for, so it is left out of the row
        continue_prompt(prompt, ids[: length - 1], answer_type=answer_type)
        for prompt, ids, length in zip(prompts, batch["answer_ids"], lengths, strict=True)
    ]
    inputs = stack_tokens(rows, padding_side) | merge_images(prompts)
    return Layout(inputs, _answer_positions(inputs["attention_mask"], lengths, padding_side))


def with_images_once(layout: Layout, batch: Batch) -> Layout:
    """The same rows with the pixels of each prompt only once; what else describes the images stays with the rows."""
    pixels = merge_images(batch["prompts"])
    return replace(layout, inputs=layout.inputs | {"pixel_values": pixels["pixel_values"]})


def prompts_alone(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One row a prompt, left-padded and without an answer: what ``generate`` takes."""
    nothing = prompts[0]["input_ids"].new_empty(0)
    rows = [continue_prompt(prompt, nothing, answer_type=None) for prompt in prompts]
    return stack_tokens(rows, "left") | merge_images(prompts)


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


def continue_prompt(prompt: dict[str, Tensor], extra_ids: Tensor, *, answer_type: int | None) -> dict[str, Tensor]:
    """Append tokens; every other per-token entry goes on as at the prompt's last token, which is text.

    Args:
        prompt: entries of shape ``(1, length, ...)`` and images, which are left out.
        extra_ids: ``(n,)`` token ids.
        answer_type: ``token_type_ids`` of the appended tokens, for models that tell answers from prompts by it.
    """
    extra = len(extra_ids)
    row = {}
    for name in token_names(prompt):
        value = prompt[name]
        tail = value[:, -1:].expand(-1, extra, *value.shape[2:])
        if name == "token_type_ids" and answer_type is not None:
            tail = torch.full_like(tail, answer_type)
        row[name] = torch.cat([value, tail], dim=1)
    row["input_ids"] = torch.cat([prompt["input_ids"], extra_ids[None]], dim=1)
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    return row


def stack_tokens(rows: Sequence[dict[str, Tensor]], padding_side: PaddingSide) -> dict[str, Tensor]:
    """Rows of unequal length as ``(rows, length, ...)`` tensors; the attention mask is 0 on the padding."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    return {
        name: torch.cat([_pad_tokens(row[name], longest, padding_side, zero=name == "attention_mask") for row in rows])
        for name in rows[0]
    }


def _pad_tokens(value: Tensor, length: int, side: PaddingSide, *, zero: bool) -> Tensor:
    # The row's last token is the padding: unlike token 0 or a pad token it is sure not to be an image placeholder.
    filler = value[:, -1:].expand(-1, length - value.shape[1], *value.shape[2:])
    filler = torch.zeros_like(filler) if zero else filler
    return torch.cat([value, filler] if side == "right" else [filler, value], dim=1)


def _answer_positions(attention_mask: Tensor, lengths: Sequence[int], padding_side: PaddingSide) -> Tensor:
    """The last ``length`` real tokens of each row: the prompt's last one predicts the answer's first."""
    width = attention_mask.shape[1]
    length = torch.tensor(lengths, device=attention_mask.device)[:, None]
    end = attention_mask.sum(dim=1, keepdim=True) if padding_side == "right" else torch.full_like(length, width)
    position = torch.arange(width, device=attention_mask.device)[None]
    return (position >= end - length) & (position < end)


def _pad_to_largest(values: Sequence[Tensor]) -> list[Tensor]:
    largest = [max(value.shape[d] for value in values) for d in range(1, values[0].ndim)]
    padded = []
    for value in values:
        missing = [size - value.shape[d + 1] for d, size in enumerate(largest)]
        padding = [n for size in reversed(missing) for n in (0, size)]
        padded.append(F.pad(value, padding) if any(missing) else value)
    return padded


PROMPT, PADDING = 0, -1
"""Branches that are no answer; answers count from 1 in each row."""


@dataclass(frozen=True)
class TreePlan:
    """Which tokens of each row may meet, and where each stands in ``[prompt | its own answer]``."""

    branch: Tensor
    """``(rows, length)`` 0 on the prompt, 1 to K on the answers, -1 on padding."""

    shift: Tensor
    """``(rows, length)`` how many tokens of sister answers stand before each token."""

    @property
    def logical(self) -> Tensor:
        """``(rows, length)`` the token's index in ``[prompt | its own answer]``."""
        return torch.arange(self.branch.shape[1], device=self.branch.device) - self.shift

    def allow(self, own: Tensor, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Cut the model's own mask across answers: a token sees its prompt and its own answer.

        Args:
            own: whether the model lets the query see the key at their places in ``[prompt | their answer]``.
            row: index of the row; the three indices broadcast against each other and ``own``.
            query: physical index of the token that looks.
            key: physical index of the token looked at.
        """
        queries, keys = self.branch[row, query], self.branch[row, key]
        seen = own & (queries != PADDING) & ((keys == queries) | (keys == PROMPT))
        # a query without any key would give NaN, so padding sees itself
        return seen | ((queries == PADDING) & (query == key))


def one_row_a_prompt(batch: Batch, *, answer_type: int | None = None) -> tuple[Layout, TreePlan]:
    """Lay out every prompt once with all its answers behind it, padded on the right.

    As in plain rows, the last token of each answer is left out: it predicts nothing that is asked for. Every answer's
    first token is predicted by the same position, the prompt's last.

    Args:
        batch: see :class:`cwdpo.batch.Batch`.
        answer_type: see :func:`cwdpo.engine.layout.continue_prompt`.
    """
    device = batch["answer_ids"].device
    lengths = batch["answer_mask"].sum(dim=-1).tolist()
    owners = batch["prompt_index"].tolist()
    rows, branches, shifts, predictors = [], [], [], []
    for i, prompt in enumerate(batch["prompts"]):
        start = prompt["input_ids"].shape[1]
        ids, branch, shift, before = [], [0] * start, [0] * start, 0
        for a in (a for a, owner in enumerate(owners) if owner == i):
            extra = lengths[a] - 1
            ids.append(batch["answer_ids"][a, :extra])
            branch += [len(ids)] * extra
            shift += [before] * extra
            predictors += [(i, position) for position in (start - 1, *range(start + before, start + before + extra))]
            before += extra
        rows.append(continue_prompt(prompt, torch.cat(ids), answer_type=answer_type))
        branches.append(torch.tensor(branch, device=device))
        shifts.append(torch.tensor(shift, device=device))
    inputs = stack_tokens(rows, "right") | merge_images(batch["prompts"])
    layout = _predict(inputs, torch.tensor(predictors, device=device))
    pad = torch.nn.utils.rnn.pad_sequence
    return layout, TreePlan(
        branch=pad(branches, batch_first=True, padding_value=PADDING),
        shift=pad(shifts, batch_first=True),
    )


def _predict(inputs: dict[str, Tensor], predictors: Tensor) -> Layout:
    """Args: ``(n, 2)`` row and position that predict each answer token, in the batch's answer order."""
    predicts = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    predicts[predictors[:, 0], predictors[:, 1]] = True
    place = (predicts.flatten().cumsum(dim=0) - 1).view_as(inputs["input_ids"])
    return Layout(inputs, predicts, place[predictors[:, 0], predictors[:, 1]])


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


@dataclass(frozen=True)
class Cost:
    """What one prompt with its answers is to a forward pass."""

    rows: int
    tokens: int
    """Of the longest of its rows, image tokens included."""


def tree_costs(batch: Batch) -> list[Cost]:
    """Of each prompt, laid out as one row with all its answers."""
    lengths = batch["answer_mask"].sum(dim=-1).double()
    answers = torch.bincount(batch["prompt_index"], weights=lengths, minlength=len(batch["prompts"])).tolist()
    return [Cost(1, prompt["input_ids"].shape[1] + int(n)) for prompt, n in zip(batch["prompts"], answers, strict=True)]


def plain_costs(batch: Batch) -> list[Cost]:
    """Of each prompt, laid out as one row an answer."""
    answers: list[list[int]] = [[0] for _ in batch["prompts"]]
    for owner, length in zip(batch["prompt_index"].tolist(), batch["answer_mask"].sum(dim=-1).tolist(), strict=True):
        answers[owner].append(length)
    return [
        Cost(max(len(lengths) - 1, 1), prompt["input_ids"].shape[1] + max(lengths))
        for prompt, lengths in zip(batch["prompts"], answers, strict=True)
    ]


def parts_within(costs: Sequence[Cost], budget: int) -> list[list[int]]:
    """Divide prompts into parts of like length, each within a budget of tokens, padding included.

    Args:
        costs: of each prompt.
        budget: most tokens in a part: its number of rows times its longest row. A prompt that alone has more is a part
            by itself.

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


class WithinBudget:
    """An engine that takes a batch in parts where no gradient is wanted: evaluation, reference and probes.

    Training divides its own batches, because each part needs its own backward pass; they pass through as they are.
    """

    def __init__(self, engine: "Engine", budget: int) -> None:
        """Put a budget on an engine.

        Args:
            engine: does the work.
            budget: most tokens in a pass, padding included.
        """
        self._inner, self._budget = engine, budget
        self.report: dict[str, Any] = engine.report

    def costs(self, model: nn.Module, batch: Batch) -> list[Cost]:
        """See :meth:`cwdpo.engine.Engine.costs`."""
        return self._inner.costs(model, batch)

    def logprobs(self, model: nn.Module, batch: Batch, *, want: Collection[Detail] = ()) -> AnswerLogprobs:
        """See :meth:`cwdpo.engine.Engine.logprobs`."""
        # the ranks of sharded weights must make equally many passes
        if torch.is_grad_enabled() or isinstance(model, FullyShardedDataParallel):
            return self._inner.logprobs(model, batch, want=want)
        parts = parts_within(self.costs(model, batch), self._budget)
        return in_parts(batch, parts, lambda part: self._inner.logprobs(model, part, want=want))


def within_budget(engine: "Engine", budget: int | None) -> "Engine":
    """The engine with a budget, or as it is where there is none."""
    return engine if budget is None else WithinBudget(engine, budget)
