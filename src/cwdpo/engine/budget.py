"""A bound on the tokens that pass through a model at once, as its engine lays them out."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from cwdpo.batch import AnswerLogprobs, Batch, Detail
from cwdpo.engine.grouping import in_parts

if TYPE_CHECKING:
    from cwdpo.engine import Engine


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
