"""The Trainer's step, taken in parts that fit in memory, each counting by its share of the step's answers.

How rows come together: in steps by length, and within a step in parts that fit a token budget.

How many rows make a step is for the Trainer's settings to say (rows a device, accumulation, ranks). Dividing them
changes how long a step takes and how much memory it needs, and not what it computes: every part's loss counts by its
share of the step's answers.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainerCallback

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import estimate_lengths
from cwdpo.engine import Engine
from cwdpo.engine.layout import parts_within, select_prompts, tree_costs
from cwdpo.errors import ConfigError
from cwdpo.trainers.arguments import AnswerArguments

_MEGABATCH = 50
"""Steps' worth of rows that are sorted together: enough to find rows of like length, few enough to stay random."""


class LengthBuckets(Sampler[int]):
    """Rows in random order, but those that share a step are of like length.

    The order follows from the seed and the epoch alone, so every rank and every resumed run has the same. The step
    with the longest row comes first in each epoch: memory that does not suffice is found out at once.
    """

    def __init__(self, lengths: Sequence[int], *, step_rows: int, seed: int) -> None:
        """Set up.

        Args:
            lengths: tokens of each row, or any numbers that grow with them.
            step_rows: rows of all micro-batches of all ranks in a step.
            seed: of the order.
        """
        self._lengths, self._step_rows, self._seed = lengths, step_rows, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; accelerate calls it."""
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


def row_tokens(batch: Batch) -> list[int]:
    """Tokens of each prompt of a batch with all its answers, image tokens included."""
    return [cost.tokens for cost in tree_costs(batch)]


def cut_further(parts: list[list[int]], number: int) -> list[list[int]]:
    """Halve the parts with the most rows until there are so many; ranks must make equally many passes.

    Args:
        parts: rows of each part.
        number: at most as many as there are rows.
    """
    parts = list(parts)
    while len(parts) < number:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        rows = parts[largest]
        assert len(rows) > 1, "ranks have different numbers of rows"
        parts[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return parts


def select_parts(batch: Batch, parts: Sequence[Sequence[int]]) -> list[Batch]:
    """The parts of a batch, as batches."""
    return [batch] if len(parts) == 1 else [select_prompts(batch, sorted(part))[0] for part in parts]


def count_roles(batches: Iterable[Batch]) -> Tensor:
    """``(roles,)`` float32: how many answers of each :class:`Role` some batches hold."""
    counts = [torch.bincount(batch["roles"], minlength=len(Role)) for batch in batches]
    return torch.stack(counts).sum(dim=0).float()


def share(batch: Batch, role: Role, of_step: Tensor | None) -> Tensor | float:
    """What part of a step's answers of a role are in this batch: the weight of their mean in the step's mean.

    Args:
        batch: a part of the step.
        role: of the answers that are averaged.
        of_step: ``(roles,)`` from :func:`count_roles`, over the step's parts, the mean over ranks. None means that the
            batch is the whole step.
    """
    if of_step is None:
        return 1.0
    return (batch["roles"] == role).sum() / of_step[role].clamp(min=1)


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


logger = logging.getLogger(__name__)


class StepTrainer(Trainer):
    """Length buckets, a token budget, and a step's mean that does not feel how its rows were divided."""

    loss_is_scaled_for_ga = True  # get_batch_samples counts the step's answers, and each loss is a share of their mean

    args: AnswerArguments
    engine: Engine

    def __init__(self, **trainer: Any) -> None:
        super().__init__(**trainer)
        self.known_lengths: list[int] | None = None
        """Tokens of each training row with its answers, where something has counted them."""
        self._warned_of_long_row = False
        if self.args.max_tokens_per_batch is not None and self.is_deepspeed_enabled:
            raise ConfigError(
                "max_tokens_per_batch takes several backward passes a step, and DeepSpeed would update the weights "
                "after each. Take it out, and lower per_device_train_batch_size."
            )

    def prepare_parts(self, model: nn.Module, parts: Sequence[Batch]) -> None:
        """Called before a batch is computed in parts; for a loss that needs to know something of all of them."""

    def row_lengths(self) -> list[int]:
        """Tokens of each training row with its answers; estimates, where nothing has counted them."""
        if self.known_lengths is None:
            rows: Any = self.train_dataset
            self.known_lengths = estimate_lengths([rows[i][1] for i in range(len(rows))], self.count_row)
        return self.known_lengths

    def count_row(self, row: Any) -> int:
        """Tokens of a row with the answers that take part in a step."""
        return row_tokens(self.data_collator([(0, row)]))[0]  # type: ignore[arg-type, list-item]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """See ``Trainer.get_train_dataloader``; ``length_buckets`` puts rows of like length in one step."""
        if not self.args.length_buckets:
            return super().get_train_dataloader()
        args, rows = self.args, self.train_dataset
        if rows is None:
            raise ValueError("training needs a train_dataset.")
        buckets = LengthBuckets(
            self.row_lengths(),
            step_rows=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
        self.add_callback(_SetEpoch(buckets))
        loader: DataLoader[Any] = DataLoader(
            rows,
            batch_size=args.train_batch_size,
            sampler=buckets,
            collate_fn=self.data_collator,
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """See ``Trainer.get_batch_samples``; the items of a step are its answers by role, the mean over ranks."""
        if self.state.global_step >= self.state.max_steps:  # resumed at the last step, the Trainer would take one more
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        counts: Tensor = self.accelerator.reduce(count_roles(batches).to(device), reduction="mean")
        return batches, counts

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """See ``Trainer.training_step``; one backward pass for each part that ``max_tokens_per_batch`` allows."""
        if self.args.max_tokens_per_batch is None:
            return super().training_step(model, inputs, num_items_in_batch)
        inputs = self._prepare_inputs(inputs)
        parts = self._parts(model, inputs)
        if len(parts) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = count_roles([inputs])
        self.prepare_parts(model, parts)
        losses = []
        for part in parts:
            # ranks meet once a batch, after the last part
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))  # type: ignore[arg-type]
        return torch.stack(losses).sum()

    def _parts(self, model: nn.Module, batch: Batch) -> list[Batch]:
        budget = self.args.max_tokens_per_batch
        assert budget is not None
        with self.compute_loss_context_manager():  # the engine may check itself on the batch, as it will be used
            costs = self.engine.costs(model, batch)
        tokens = [cost.rows * cost.tokens for cost in costs]
        if max(tokens) > budget and not self._warned_of_long_row:
            self._warned_of_long_row = True
            row = batch["row_index"][tokens.index(max(tokens))].item()
            logger.warning(
                "row %d has %d tokens, more than max_tokens_per_batch (%d): such rows run alone",
                row,
                max(tokens),
                budget,
            )
        parts = parts_within(costs, budget)
        if self.args.world_size > 1:  # wrappers and losses wait for each other in every pass
            number = torch.tensor(len(parts), device=self.args.device)
            parts = cut_further(parts, int(self.accelerator.gather(number).max()))
        return select_parts(batch, parts)


class _SetEpoch(TrainerCallback):
    """Tells the sampler its epoch: accelerate does not reach it in a resumed epoch on several ranks."""

    def __init__(self, buckets: LengthBuckets) -> None:
        self.buckets = buckets

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.buckets.set_epoch(int(state.epoch or 0))
