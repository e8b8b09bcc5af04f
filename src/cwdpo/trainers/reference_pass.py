"""The pass before stage 2's first step: log-probs of every answer under the model that stage 2 starts from.

One pass serves both the reference (log pi_ref of chosen and rejected answers) and the cooling floor (mean log-probs of
rejected and gentle ones). What the cache already holds is not computed again, so an interrupted pass goes on. Rows of
like length go together, the longest first.
"""

import logging
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cwdpo.batch import Batch, Role, eval_mode
from cwdpo.data.collate import AnswerCollator, RowDataset, estimate_lengths
from cwdpo.engine.layout import select_answers
from cwdpo.errors import UserError
from cwdpo.reference import ReferenceCache
from cwdpo.trainers.ranks import agree_on_engine, on_device
from cwdpo.trainers.steps import row_tokens

if TYPE_CHECKING:
    from cwdpo.trainers.cw_dpo import CWDPOTrainer

logger = logging.getLogger(__name__)

MeanLogprobs: TypeAlias = dict[Role, Tensor]
"""``(n,)`` lbar of the training set's answers of each role, nats per token, over all ranks."""

_SAVE_EVERY = 50
"""Batches between two parts of the cache."""


class OpeningPass:
    """Fills a cache with the log-probs of a trainer's training and evaluation rows."""

    def __init__(self, trainer: "CWDPOTrainer") -> None:
        self.trainer = trainer
        self.collator = AnswerCollator(trainer.encoder, roles=(Role.CHOSEN, Role.REJECTED, Role.GENTLE))
        self._lengths: dict[int, int] = {}

    def run(self, model: nn.Module, cache: ReferenceCache) -> MeanLogprobs:
        """Measure the model on every answer; returns the mean log-probs of the training rows' negatives."""
        negatives: dict[Role, list[str]] = {Role.REJECTED: [], Role.GENTLE: []}
        train_rows: Any = self.trainer.train_dataset
        agree_on_engine(self.trainer, model)
        with on_device(model, self.trainer.args.device), eval_mode(model):
            for rows in self._evaluation_rows():
                self._fill(model, cache, rows, {})
            self._lengths = {}
            self._fill(model, cache, train_rows, negatives)
        cache.save()
        self.trainer.accelerator.wait_for_everyone()
        means = {int(role): cache.means(keys).tolist() for role, keys in negatives.items()}
        cache.reload()  # what the other ranks have written
        gathered = gather_object([means])
        if train_rows is not None:
            self._share_lengths(len(train_rows))
        return {
            role: torch.tensor([mean for rank in gathered for mean in rank[int(role)]], dtype=torch.float64)
            for role in negatives
        }

    def _evaluation_rows(self) -> list[RowDataset]:
        rows: Any = self.trainer.eval_dataset
        return list(rows.values()) if isinstance(rows, dict) else [rows]

    @torch.no_grad()
    def _fill(
        self, model: nn.Module, cache: ReferenceCache, rows: RowDataset | None, negatives: dict[Role, list[str]]
    ) -> None:
        if rows is None:
            return
        trainer = self.trainer
        rank, ranks = trainer.accelerator.process_index, trainer.accelerator.num_processes
        loader: DataLoader[Any] = DataLoader(
            Subset(rows, self._by_length(rows)[rank::ranks]),
            batch_size=trainer.args.reference_batch_size or trainer.args.per_device_eval_batch_size,
            collate_fn=self.collator,
            num_workers=trainer.args.dataloader_num_workers,
        )
        for number, batch in enumerate(loader, start=1):
            if missing := cache.missing(batch["keys"]):
                self._measure(model, cache, select_answers(batch, torch.tensor(missing)))
            self._lengths |= zip(batch["row_index"].tolist(), self._tokens_in_a_step(batch), strict=True)
            for key, role in zip(batch["keys"], batch["roles"].tolist(), strict=True):
                negatives.get(Role(role), []).append(key)
            if number % _SAVE_EVERY == 0:
                cache.save()
            self._tell(number, len(loader))

    def _by_length(self, rows: RowDataset) -> list[int]:
        """Positions of the rows, the longest first; the same on every rank."""
        every = [rows[i][1] for i in range(len(rows))]
        lengths = estimate_lengths(every, lambda row: row_tokens(self.collator([(0, row)]))[0])
        return sorted(range(len(rows)), key=lambda i: -lengths[i])

    def _tokens_in_a_step(self, batch: Batch) -> list[int]:
        """Tokens of each row with the answers that training looks at."""
        taken = torch.isin(batch["roles"], torch.tensor([int(role) for role in self.trainer.roles]))
        mask = batch["answer_mask"] & taken[:, None]
        return row_tokens(batch | {"answer_mask": mask})

    def _share_lengths(self, num_rows: int) -> None:
        """Give the trainer the counts of the training rows, of all ranks."""
        counted: dict[int, int] = {}
        for lengths in gather_object([self._lengths]):
            counted |= lengths
        self.trainer.known_lengths = [counted[i] for i in range(num_rows)]

    def _tell(self, done: int, total: int) -> None:
        """Report progress to callbacks that have ``on_opening(done, total)``, in batches of this rank."""
        if self.trainer.is_world_process_zero():
            for callback in self.trainer.callback_handler.callbacks:
                if hasattr(callback, "on_opening"):
                    callback.on_opening(done, total)

    def _measure(self, model: nn.Module, cache: ReferenceCache, batch: Batch) -> None:
        with self.trainer.accelerator.autocast():
            logprobs = self.trainer.engine.logprobs(model, send_to_device(batch, self.trainer.args.device))
        totals = logprobs.total.tolist()
        for place, total in enumerate(totals):
            if not math.isfinite(total):
                row = batch["row_index"][batch["prompt_index"][place]].item()
                raise UserError(
                    f"the model that stage 2 starts from gives an answer of row {row} a log-prob of {total}, so there "
                    "is nothing to compare with. Start from a checkpoint whose weights are finite; in float16, write "
                    "`model.dtype: bfloat16` or float32."
                )
        cache.add(batch["keys"], totals, logprobs.mask.sum(dim=-1).tolist())
