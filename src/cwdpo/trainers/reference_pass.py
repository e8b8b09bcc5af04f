"""The reference pass: log-probs of every answer under the model that stage 2 starts from, before its first step.

One pass serves both the reference (log pi_ref of chosen and rejected answers) and the cooling floor (their
mean log-probs). What the cache already holds is not computed again, so an interrupted pass goes on. Rows of
similar length go together, the longest first.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cwdpo.batch import AnswerLogprobs, Batch, Role, eval_mode
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.data.rows import Row
from cwdpo.engine.layout import select_answers
from cwdpo.errors import UserError
from cwdpo.reference import ReferenceCache
from cwdpo.trainer_protocol import TrainerProtocol
from cwdpo.trainers.steps import estimate_row_tokens, row_tokens

Logprobs: TypeAlias = Callable[[Batch], AnswerLogprobs]
"""Answers with the log-probs of a batch that is on the trainer's device."""

_SAVE_EVERY = 50
"""Batches between two parts of the cache."""


@dataclass(frozen=True)
class Measured:
    """What a pass learned of the training rows, over all ranks."""

    means: Mapping[Role, Tensor]
    """``(n,)`` lbar of the answers of each role, nats per token."""

    lengths: list[int]
    """Tokens of each row with the answers of a step."""


class ReferencePass:
    """Fills a cache with log-probs of rows. All ranks take part, each with its share of the rows."""

    def __init__(
        self,
        trainer: TrainerProtocol,
        cache: ReferenceCache,
        *,
        batch_size: int,
        progress: Callable[[int, int], None],
        crops: bool = False,
    ) -> None:
        """Set up; ``progress`` is called with the number of this rank's batches that are done, and of all of them.
        With ``crops``, the chosen answers are measured under crops of their images too."""
        self.trainer, self.cache, self.batch_size, self.progress = trainer, cache, batch_size, progress
        roles = (Role.CHOSEN, Role.REJECTED, Role.GENTLE)
        self.collator = AnswerCollator(trainer.encoder, roles=roles, crops=crops)

    def run(self, model: nn.Module, evaluated: Sequence[RowDataset], *, roles: Sequence[Role]) -> Measured:
        """Measure a model on sets of evaluated rows and on the training rows; ``roles`` take part in a step."""
        rows = self.trainer.train_dataset
        agree_on_engine(self.trainer, model, rows, self.collator)
        keys_of: dict[Role, list[str]] = {role: [] for role in Role}
        lengths: dict[int, int] = {}
        in_a_step = [int(role) for role in roles]
        with self.measured_by(model) as logprobs:
            for other in evaluated:
                for _ in self._filled(other, logprobs):
                    pass
            for batch in self._filled(rows, logprobs) if rows is not None else ():
                counted = row_tokens(batch | {"lengths": batch["lengths"] * np.isin(batch["roles"], in_a_step)})
                lengths |= zip(batch["row_index"].tolist(), counted, strict=True)
                for key, role in zip(batch["keys"], batch["roles"].tolist(), strict=True):
                    keys_of[Role(role)].append(key)
        self.cache.save()
        here = {int(role): self.cache.means(keys).tolist() for role, keys in keys_of.items()}
        self._share()
        means: dict[int, list[float]] = {role: [] for role in here}
        for rank_means, rank_lengths in gather_object([(here, lengths)]):
            lengths |= rank_lengths
            for role, values in rank_means.items():
                means[role] += values
        return Measured(
            {Role(role): torch.tensor(values, dtype=torch.float64) for role, values in means.items()},
            [lengths[i] for i in range(len(rows or ()))],
        )

    def add(self, rows: RowDataset, logprobs: Logprobs) -> None:
        """Measure other rows as well."""
        for _ in self._filled(rows, logprobs):
            pass
        self.cache.save()
        self._share()

    def first_missing(self, rows: RowDataset) -> int | None:
        """The position of the first row that has an answer without an entry in the cache, on every rank alike."""
        for start in range(0, len(rows), self.batch_size):
            batch = self.collator([rows[i] for i in range(start, min(start + self.batch_size, len(rows)))])
            for part in _with_crops(batch):
                if missing := self.cache.missing(part["keys"]):
                    return int(part["row_index"][part["prompt_index"][missing[0]]])
        return None

    @contextmanager
    def measured_by(self, model: nn.Module) -> Iterator[Logprobs]:
        """A model that can be asked, in eval mode."""
        with on_device(model, self.trainer.args.device), eval_mode(model):
            yield partial(self.trainer.engine.logprobs, model)

    def _filled(self, rows: RowDataset, logprobs: Logprobs) -> Iterator[Batch]:
        """This rank's share of the rows in batches, each after its answers are in the cache."""
        rank, ranks = self.trainer.accelerator.process_index, self.trainer.accelerator.num_processes
        lengths = estimate_row_tokens(rows, self.collator)
        longest_first = sorted(range(len(rows)), key=lambda i: -lengths[i])  # the same on every rank
        loader: DataLoader[Batch] = DataLoader(
            Subset(rows, longest_first[rank::ranks]),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            collate_fn=self.collator,
            num_workers=self.trainer.args.dataloader_num_workers,
        )
        for number, batch in enumerate(loader, start=1):
            for part in _with_crops(batch):
                if missing := self.cache.missing(part["keys"]):
                    self._measure(select_answers(part, missing), logprobs)
            if number % _SAVE_EVERY == 0:
                self.cache.save()
            self.progress(number, len(loader))
            yield batch

    @torch.no_grad()
    def _measure(self, batch: Batch, logprobs: Logprobs) -> None:
        with self.trainer.accelerator.autocast():
            found = logprobs(send_to_device(batch, self.trainer.args.device))
        totals = found.total.tolist()
        for place, total in enumerate(totals):
            if not math.isfinite(total):
                row = batch["row_index"][batch["prompt_index"][place]]
                raise UserError(
                    f"the model that stage 2 starts from gives an answer of row {row} a log-prob of {total}, so there "
                    "is nothing to compare with. Start from a checkpoint whose weights are finite; in float16, write "
                    "`model.dtype: bfloat16` or float32."
                )
        self.cache.add(batch["keys"], totals, batch["lengths"].tolist())

    def _share(self) -> None:
        """Let every rank read what the others have written."""
        self.trainer.accelerator.wait_for_everyone()
        self.cache.reload()
        is_shared = self.cache.directory is not None and self.trainer.accelerator.num_processes > 1
        if is_shared and len(set(gather_object([self.cache.digest()]))) > 1:
            raise UserError(
                f"{self.cache.directory}: the ranks do not see the same directory there, so none has the reference "
                "log-probs that the others computed. Choose an `output_dir` (or `reference_dir`) on a file system that "
                "all machines share. If this is one, and shows new files late, start again: what was computed is kept. "
                "Or write `reference: live` for stage 2 (CWDPOConfig(reference='live'))."
            )


def _with_crops(batch: Batch) -> list[Batch]:
    return [batch, batch["cropped"]] if "cropped" in batch else [batch]


@torch.no_grad()
def agree_on_engine(
    trainer: TrainerProtocol,
    model: nn.Module,
    rows: RowDataset | None,
    collate: Callable[[Sequence[tuple[int, Row]]], Batch],
) -> None:
    """Let all ranks choose together how log-probs are computed: on one and the same row, with images if any has some.

    Otherwise each rank would choose at its own first batch. One whose share of the reference is on disk already has
    none before training, and ranks that reach the choice at different times wait forever.
    """
    if trainer.accelerator.num_processes == 1 or not rows:
        return
    row = next((rows[i] for i in range(len(rows)) if rows[i][1].images), rows[0])
    batch = send_to_device(collate([row]), trainer.args.device)
    with on_device(model, trainer.args.device), eval_mode(model), trainer.accelerator.autocast():
        trainer.engine.logprobs(model, batch)


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a model where its batches are: FSDP and DeepSpeed leave it on the CPU until training wraps it."""
    home = next(model.parameters()).device
    if home.type == device.type or home.type == "meta":
        yield
        return
    model.to(device)
    try:
        yield
    finally:
        model.to(home)
