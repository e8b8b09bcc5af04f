"""The pass before stage 2's first step: log-probs of every answer under the model that stage 2 starts from.

One pass serves both the reference (log pi_ref of chosen and rejected answers) and the cooling floor (mean log-probs of
rejected and gentle ones). What the cache already holds is not computed again, so an interrupted pass goes on.
"""

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import AnswerCollator, RowDataset
from cwdpo.reference import ReferenceCache

if TYPE_CHECKING:
    from cwdpo.trainers.base import AnswerTrainer

logger = logging.getLogger(__name__)

MeanLogprobs: TypeAlias = dict[Role, Tensor]
"""``(n,)`` lbar of the training set's answers of each role, nats per token, over all ranks."""

_SAVE_EVERY = 50
"""Batches between two parts of the cache."""


class OpeningPass:
    """Fills a cache with the log-probs of a trainer's training and evaluation rows."""

    def __init__(self, trainer: "AnswerTrainer") -> None:
        self.trainer = trainer
        self.collator = AnswerCollator(trainer.encoder, roles=(Role.CHOSEN, Role.REJECTED, Role.GENTLE))

    def run(self, model: nn.Module, cache: ReferenceCache) -> MeanLogprobs:
        """Measure the model on every answer; returns the mean log-probs of the training rows' negatives."""
        negatives: dict[Role, list[str]] = {Role.REJECTED: [], Role.GENTLE: []}
        was_training = model.training
        model.eval()
        train_rows: Any = self.trainer.train_dataset
        for rows in self._evaluation_rows():
            self._fill(model, cache, rows, {})
        self._fill(model, cache, train_rows, negatives)
        model.train(was_training)
        cache.save()
        self.trainer.accelerator.wait_for_everyone()
        means = {int(role): cache.means(keys).tolist() for role, keys in negatives.items()}
        cache.reload()  # what the other ranks have written
        gathered = gather_object([means])
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
            Subset(rows, range(rank, len(rows), ranks)),
            batch_size=trainer.args.per_device_eval_batch_size,
            collate_fn=self.collator,
            num_workers=trainer.args.dataloader_num_workers,
        )
        for number, batch in enumerate(loader, start=1):
            if cache.missing(batch["keys"]):
                self._measure(model, cache, batch)
            for key, role in zip(batch["keys"], batch["roles"].tolist(), strict=True):
                negatives.get(Role(role), []).append(key)
            if number % _SAVE_EVERY == 0:
                cache.save()
            self._tell(number, len(loader))

    def _tell(self, done: int, total: int) -> None:
        """Report progress to callbacks that have ``on_opening(done, total)``, in batches of this rank."""
        if self.trainer.is_world_process_zero():
            for callback in self.trainer.callback_handler.callbacks:
                if hasattr(callback, "on_opening"):
                    callback.on_opening(done, total)

    def _measure(self, model: nn.Module, cache: ReferenceCache, batch: Batch) -> None:
        with self.trainer.accelerator.autocast():
            logprobs = self.trainer.engine.logprobs(model, send_to_device(batch, self.trainer.args.device))
        cache.add(batch["keys"], logprobs.total.tolist(), logprobs.mask.sum(dim=-1).tolist())
