"""An optimiser step: what its parts know of the whole, how it is divided to fit in memory, and which rows share one.

How many rows make a step is for the Trainer's settings to say (rows a device, accumulation, ranks). Dividing them
changes how long a step takes and how much memory it needs, and not what it computes: every part's loss counts by its
share of the step's answers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.batch import Batch, Role, places_of
from cwdpo.data.collate import RowDataset, estimate_lengths
from cwdpo.data.rows import Row
from cwdpo.engine.layout import tree_costs


@dataclass(frozen=True)
class Step:
    """What a batch's loss needs to know of the whole step. Without any values, the batch is the whole step."""

    answers: Tensor | None = None
    """``(roles,)`` from :func:`count_roles`, over the step's parts, the mean over ranks."""

    gentle_nll: Tensor | None = None
    """``()`` mean NLL per token of the gentle negatives in all parts, on all ranks, of a batch that was divided."""

    margin: Tensor | None = None
    """``()`` mean reward margin of the whole step's pairs, where the loss reads it."""

    def share_of(self, batch: Batch, role: Role) -> Tensor | float:
        """What part of the step's answers of a role a batch holds: the weight of their mean in the step's mean."""
        if self.answers is None:
            return 1.0
        # one number on the CPU may meet a GPU's; as a number of Python's it would be multiplied by an inverse
        return torch.tensor(len(places_of(batch, role))) / self.answers[role].clamp(min=1)


WHOLE = Step()


def count_roles(batches: Iterable[Batch]) -> Tensor:
    """``(roles,)`` float32: how many answers of each :class:`Role` some batches hold."""
    counts = sum(np.bincount(batch["roles"], minlength=len(Role)) for batch in batches)
    return torch.as_tensor(counts).float()


def row_tokens(batch: Batch) -> list[int]:
    """Tokens of each prompt of a batch with all its answers, image tokens included."""
    return [cost.tokens for cost in tree_costs(batch)]


def estimate_row_tokens(rows: RowDataset, collate: Callable[[Sequence[tuple[int, Row]]], Batch]) -> list[int]:
    """Tokens of each row with the answers that a batch has of it, see :func:`estimate_lengths`."""
    return estimate_lengths(lambda i: rows[i][1], len(rows), lambda row: row_tokens(collate([(0, row)]))[0])


def cut_further(parts: list[list[int]], number: int) -> list[list[int]]:
    """Halve the parts with the most rows until there are so many; ranks must make equally many passes."""
    parts = list(parts)
    while len(parts) < number:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        rows = parts[largest]
        assert len(rows) > 1, "ranks have different numbers of rows"
        parts[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return parts


_MEGABATCH = 50
"""Steps' worth of rows that are sorted together: enough to find rows of similar length, few enough to stay random."""


class LengthBuckets(Sampler[int]):
    """Rows in random order, but those that share a step are of similar length.

    The order follows from the seed and the epoch alone, so every rank and every resumed run has the same. The step
    with the longest row comes first in each epoch, so that a lack of memory shows at once.
    """

    def __init__(self, lengths: Sequence[int], *, step_rows: int, seed: int) -> None:
        """``step_rows`` are those of all micro-batches of all ranks in a step."""
        self._lengths, self._step_rows, self._seed = lengths, step_rows, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:  # accelerate calls it
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        shuffled = torch.randperm(len(self), generator=generator).tolist()
        steps: list[list[int]] = []
        for mega in _cut(shuffled, _MEGABATCH * self._step_rows):
            steps += _cut(sorted(mega, key=self._lengths.__getitem__, reverse=True), self._step_rows)
        whole = [step for step in steps if len(step) == self._step_rows]
        rest = [step for step in steps if len(step) < self._step_rows]  # a short step must stay the last one
        whole = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        if whole:
            longest = max(range(len(whole)), key=lambda i: max(map(self._lengths.__getitem__, whole[i])))
            whole[0], whole[longest] = whole[longest], whole[0]
        return iter([row for step in whole + rest for row in step])


class BucketEpoch(TrainerCallback):
    """Sets the epoch of a trainer's buckets: accelerate does not reach them in a resumed epoch on several ranks."""

    buckets: LengthBuckets | None = None
    """Of the dataloader in use."""

    def on_epoch_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if self.buckets is not None:
            self.buckets.set_epoch(int(state.epoch or 0))


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
