"""Several processes that train as one: what they agree on before the first step, and what they cannot do together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from cwdpo.batch import eval_mode
from cwdpo.errors import ConfigError

if TYPE_CHECKING:
    from cwdpo.trainers.base import AnswerTrainer


def check_sharding(trainer: "AnswerTrainer") -> None:
    """Refuse what would end in an error or in ranks that wait for each other for ever.

    Raises:
        ConfigError: weights are divided among the ranks in a way, or over rows, that cannot work.
    """
    state = trainer.accelerator.state
    if trainer.is_fsdp_enabled and state.fsdp_plugin.fsdp_version == 1:
        raise ConfigError(
            "FSDP version 1 frees the output embeddings before the log-probs of answers are read with them. "
            "Write `fsdp_config: {version: 2}`, which is the default."
        )
    is_zero3 = trainer.is_deepspeed_enabled and state.deepspeed_plugin.zero_stage == 3
    if not (trainer.is_fsdp_enabled or is_zero3):
        return
    rows: Any = trainer.train_dataset
    kinds = {bool(rows[i][1].images) for i in range(len(rows))} if rows is not None else set()
    if len(kinds) == 2:
        raise ConfigError(
            "some rows have images and some have none. Where the vision tower's weights are divided among the GPUs, "
            "one that has no image at a step would leave the others waiting for ever. Train the two kinds of rows one "
            "after the other, or without FSDP and ZeRO-3 (`torchrun` alone, or ZeRO-2)."
        )


@torch.no_grad()
def agree_on_engine(trainer: "AnswerTrainer", model: nn.Module | None = None) -> None:
    """Let all ranks choose together how log-probs are computed: on one and the same row, with images if any has some.

    Otherwise each rank would choose at its own first batch. One whose share of the reference is on disk already has
    none before training, and ranks that meet at different times wait for ever.

    Args:
        trainer: of this rank.
        model: asked about; None for the policy.
    """
    rows: Any = trainer.train_dataset
    if trainer.accelerator.num_processes == 1 or rows is None:
        return
    index = next((i for i in range(len(rows)) if rows[i][1].images), 0)
    collate: Any = trainer.data_collator
    batch, model = collate([rows[index]]), model or trainer.model
    assert model is not None
    with on_device(model, trainer.args.device), eval_mode(model), trainer.accelerator.autocast():
        trainer.engine.logprobs(model, send_to_device(batch, trainer.args.device))


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
