"""What on-policy sampling, probes and the reference pass need of a trainer: a small view, so that none imports it."""

from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn
from transformers import TrainerState, TrainingArguments

from cwdpo.data.encode import Encoder
from cwdpo.engine import Engine


class TrainerView(Protocol):
    """A ``transformers.Trainer`` whose batch is prompts with answers. Both stages' trainers are one."""

    @property
    def model(self) -> nn.Module | None:
        """The policy, without the wrappers of training."""

    @property
    def args(self) -> TrainingArguments:
        """The Trainer's own settings; a part's own settings are passed to the part."""

    @property
    def engine(self) -> Engine:
        """Answers what the log-probs of some answers are."""

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
    def train_dataset(self) -> Any:
        """``data.collate.RowDataset``, or None."""

    def log(self, logs: dict[str, float]) -> None:
        """Hand scalars to every logger."""

    def is_world_process_zero(self) -> bool:
        """Whether this rank writes files."""
