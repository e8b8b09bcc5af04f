"""A step whose loss or gradient is not finite: it stops the run before its update, or is skipped and counted."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from cwdpo.batch import Batch, Integers
from cwdpo.errors import UserError
from cwdpo.trainer_protocol import TrainerProtocol
from cwdpo.trainers.callbacks import restored

logger = logging.getLogger(__name__)

_NAMED = 16
"""Rows that a message names; a step may have hundreds."""

_ADVICE = (
    "Training stopped before the update, and nothing was saved over. Look at these rows; lower trainer.learning_rate; "
    "in float16 use bfloat16; or resume with `trainer: {on_nonfinite: skip}`, which skips and counts such steps."
)
_ADVICE_ON_WEIGHTS = (
    "The model's weights are not finite either, so no later step can be right. Nothing was saved over: go back to a "
    "checkpoint, with a lower trainer.learning_rate."
)


class FiniteSteps(TrainerCallback, ExportableState):
    """Looks at each step between its backward pass and its update, on all ranks together.

    A step counts as a whole: where one micro-batch of one rank has a loss that is not finite, or the gradient that all
    share is not, no rank makes the update. Loss scaling (``fp16``) meets gradients that overflow by itself, by skipping
    the update and scaling less; here they count only once it scales no more.
    """

    def __init__(self, trainer: TrainerProtocol, *, skips: bool) -> None:
        """``skips``: leave such a step out and go on, instead of a UserError that names its rows."""
        self.trainer, self.skips = trainer, skips
        self.skipped = 0
        """Steps that were left out since the stage began."""

        self._on_skip: list[Callable[[], None]] = []
        self._losses: list[Tensor] = []
        self._rows: list[Integers] = []
        self._total: Tensor | None = None
        self._kept = self._left_out = 0

    def on_skip(self, forget: Callable[[], None]) -> None:
        """Have what the step left elsewhere forgotten, when it is left out."""
        self._on_skip.append(forget)

    def counted(self, loss: Tensor, batch: Batch) -> Tensor:
        """Remember a micro-batch's loss, ``()``, and its rows. What is given back, the Trainer adds up for its log: the
        loss, or where steps are skipped, 0 in place of one that is not finite."""
        loss = loss.detach()
        self._losses.append(loss)
        self._rows.append(batch["row_index"])
        return torch.where(loss.isfinite(), loss, 0.0) if self.skips else loss

    def mean_loss(self) -> float | None:
        """The mean loss of the steps since the last call that were not left out, on all ranks; NaN where all were.
        None where none was, as the Trainer's own mean is right then. Every rank must call it."""
        total, kept, left_out = self._total, self._kept, self._left_out
        self._forget_mean()
        if not left_out:
            return None
        mean = torch.full((), torch.nan, device=self.trainer.args.device) if total is None else total / kept
        return float(self.trainer.accelerator.reduce(mean, reduction="mean"))

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.skipped = int((restored(self, state) or {"skipped": 0})["skipped"])
        self._losses, self._rows = [], []
        self._forget_mean()

    def on_pre_optimizer_step(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop, or take the gradient away, so that the optimizer finds nothing to do."""
        model: nn.Module = kwargs["model"]
        losses, rows = torch.stack(self._losses), self._rows
        self._losses, self._rows = [], []
        norm = self._gradient_norm(model).to(losses.device)
        here = torch.stack([~losses.isfinite().all(), ~norm.isfinite()]).float()
        bad_loss, bad_gradient = self.trainer.accelerator.reduce(here, reduction="sum").tolist()
        if not bad_loss and not (bad_gradient and self._is_not_of_scaling()):
            if self.skips:
                self._total = losses.sum() + (0.0 if self._total is None else self._total)
                self._kept += 1
            return
        broken = [places for loss, places in zip(losses, rows, strict=True) if not bad_loss or not loss.isfinite()]
        what = "loss" if bad_loss else "norm of the gradient"
        problem = f"step {state.global_step + 1}: the {what} is not a finite number. {self._named(broken)}"
        weights = broken_weights(model)
        if weights or not self.skips:
            raise UserError(f"{problem} {_ADVICE_ON_WEIGHTS if weights else _ADVICE}")
        for weight in model.parameters():
            weight.grad = None
        for forget in self._on_skip:
            forget()
        self._left_out += 1
        self.skipped += 1
        if state.is_world_process_zero:
            logger.warning("%s The step is skipped (number %d of this stage).", problem, self.skipped)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"skipped": self.skipped}}

    def _forget_mean(self) -> None:
        self._total = None  # sums, and not the values, as nobody may ever ask for the mean
        self._kept = self._left_out = 0

    def _gradient_norm(self, model: nn.Module) -> Tensor:
        """``()`` of this rank's part of the gradient."""
        accelerator = self.trainer.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:  # which has made the update, and knows its norm
            found = accelerator.clip_grad_norm_(model.parameters(), float("inf"))
            return torch.as_tensor(0.0 if found is None else found)
        gradients = [local_part(weight.grad) for weight in model.parameters() if weight.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)

    def _is_not_of_scaling(self) -> bool:
        scaler = self.trainer.accelerator.scaler
        return scaler is None or scaler.get_scale() <= 1

    def _named(self, broken: Sequence[Integers]) -> str:
        """The rows of some micro-batches, on all ranks."""
        here = [place for rows in broken for place in rows.tolist()]
        places = sorted({place for rank in gather_object([here]) for place in rank})
        rows = self.trainer.train_dataset
        assert rows is not None, "training has rows"
        names, before = [], ""
        for place in places[:_NAMED]:
            row = rows[place][1]
            file, colon, line = (row.source or f"row {place}").rpartition(":")
            # a path is spelled out once
            names.append(
                (Path(file).name if file == before else file) + colon + line + (f" (id {row.id})" if row.id else "")
            )
            before = file
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        return f"Its rows: {', '.join(names)}{more}."


def broken_weights(model: nn.Module) -> list[str]:
    """Names of trained weights that are not finite, of this rank's parts and all others'. Every rank must call it."""
    trained = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    here = [name for name, weight in trained if not local_part(weight).isfinite().all()]
    return sorted({name for names in gather_object([here]) for name in names})


def local_part(weight: Tensor) -> Tensor:
    """This process's part of a weight or gradient that is divided among several."""
    to_local: Callable[[], Tensor] | None = getattr(weight, "to_local", None)
    return (to_local() if to_local is not None else weight).detach()
