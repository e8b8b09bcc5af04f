"""TensorBoard files of a stage, with the names and steps that the run's own files have."""

import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState


class TensorBoardRecorder(TrainerCallback):
    """Writes every scalar that a stage logs; on the first rank only. A resumed stage replaces what it repeats."""

    def __init__(self, directory: Path) -> None:
        """Set up.

        Args:
            directory: of the stage's event files; made when training begins.
        """
        self._directory = directory
        self._writer: Any = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Open a file; what earlier ones say of later steps than the checkpoint's is void."""
        if state.is_world_process_zero:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorBoard's own, on its dependencies
                from torch.utils.tensorboard import SummaryWriter

                purge = state.global_step + 1 if state.global_step else 0
                self._writer = SummaryWriter(str(self._directory), purge_step=purge)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Write a line's scalars; not the Trainer's closing line, which repeats means."""
        if self._writer is None or "train_runtime" in (logs or {}):
            return
        for name, value in (logs or {}).items():
            again = name == "epoch" and "loss" not in logs  # stands on every line of a step, and is told once
            if isinstance(value, int | float) and not again:
                self._writer.add_scalar(name, value, state.global_step)
        self._writer.flush()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; also when training broke off."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
