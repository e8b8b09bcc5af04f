"""Several processes that train as one: what they agree on before the first step, and what they cannot do together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from cwdpo.batch import Batch, eval_mode
from cwdpo.data.collate import RowDataset
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.trainer_view import TrainerView


def check_sharding(accelerator: Accelerator, rows: RowDataset | None) -> None:
    """Refuse what would end in an error, or in ranks that wait for each other forever.

    Args:
        accelerator: knows how the weights are divided.
        rows: that are trained on.

    Raises:
        ConfigError: weights are divided among the ranks in a way, or over rows, that cannot work.
    """
    fsdp = getattr(accelerator.state, "fsdp_plugin", None)
    deepspeed = getattr(accelerator.state, "deepspeed_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise ConfigError(
            "FSDP version 1 frees the output embeddings before the log-probs of answers are read with them. "
            "Write `fsdp_config: {version: 2}`, which is the default."
        )
    if fsdp is None and (deepspeed is None or deepspeed.zero_stage != 3):
        return
    kinds = {bool(rows[i][1].images) for i in range(len(rows))} if rows is not None else set()
    if len(kinds) == 2:
        raise ConfigError(
            "some rows have images and some have none. Where the vision tower's weights are divided among the GPUs, "
            "one that has no image at a step would leave the others waiting forever. Train the two kinds of rows one "
            "after the other, or without FSDP and ZeRO-3 (`torchrun` alone, or ZeRO-2)."
        )


@torch.no_grad()
def agree_on_engine(
    trainer: TrainerView,
    model: nn.Module,
    rows: RowDataset | None,
    collate: Callable[[Sequence[tuple[int, Row]]], Batch],
) -> None:
    """Let all ranks choose together how log-probs are computed: on one and the same row, with images if any has some.

    Otherwise each rank would choose at its own first batch. One whose share of the reference is on disk already has
    none before training, and ranks that reach the choice at different times wait forever.

    Args:
        trainer: of this rank.
        model: whose log-probs they are.
        rows: one of them is asked about; without any, nothing happens.
        collate: makes a batch of it.
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
