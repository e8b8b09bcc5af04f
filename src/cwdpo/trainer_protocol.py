"""What on-policy sampling, probes and the reference pass need of a trainer, so that none imports it."""

from collections.abc import Callable
from typing import Protocol

from accelerate import Accelerator
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from cwdpo.data.collate import RowDataset
from cwdpo.data.encode import Encoder
from cwdpo.engine import Engine


class TrainerProtocol(Protocol):
    """A ``transformers.Trainer`` whose batch is prompts with answers. Both stages' trainers are one."""

    probe_metrics: Callable[[], dict[str, float]] | None
    """Readings of probes that an evaluation reports too; whatever measures probes sets it."""

    @property
    def model(self) -> nn.Module:
        """The model, without the wrappers of training."""

    @property
    def args(self) -> TrainingArguments:
        """The Trainer's own settings; a part's own settings are passed to the part."""

    @property
    def engine(self) -> Engine:
        """Computes log-probs of answers."""

    @property
    def encoder(self) -> Encoder:
        """Turns rows into token ids and images."""

    @property
    def accelerator(self) -> Accelerator:
        """Ranks, precision and devices."""

    @property
    def state(self) -> TrainerState:
        """Where training is."""

    @property
    def control(self) -> TrainerControl:
        """What the Trainer does next: log, evaluate, save, stop."""

    @property
    def train_dataset(self) -> RowDataset | None:
        """The rows that are trained on."""

    @property
    def step_rows(self) -> int:
        """Rows of a step, those of all micro-batches of all ranks."""

    @property
    def batch_rows(self) -> int:
        """Rows of one micro-batch of one rank."""

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP or ZeRO-3 divide the weights, so that no process has the whole model."""

    def log(self, logs: dict[str, float]) -> None:
        """Hand scalars to every logger."""

    def is_world_process_zero(self) -> bool:
        """Whether this rank writes files."""
