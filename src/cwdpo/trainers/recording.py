"""Callbacks that write a run's metrics and end it politely."""

import signal
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.records.lines import Stage
from cwdpo.records.run_directory import RunDirectory


class MetricsRecorder(TrainerCallback):
    """Writes each log line of a stage to ``metrics.jsonl``; a resumed stage replaces what it repeats."""

    def __init__(
        self, run: RunDirectory, stage: Stage, *, histograms: Callable[[], Mapping[str, list[int]]] = dict
    ) -> None:
        """Set up.

        Args:
            run: whose file is written.
            stage: that is trained.
            histograms: what a line of training holds beside the scalars that the Trainer logs.
        """
        self.run, self.stage, self._histograms = run, stage, histograms

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Drop lines that were written after the checkpoint that the stage resumes from."""
        if state.is_world_process_zero:
            self.run.truncate_after(self.stage, state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        """Write a line; not the Trainer's closing one, which repeats means, nor probes, which have their own file."""
        elsewhere = any(name == "train_runtime" or name.startswith("probes/") for name in logs or {})
        if state.is_world_process_zero and logs and not elsewhere:
            more = self._histograms() if "loss" in logs else {}
            self.run.append_metrics({"stage": self.stage, "step": state.global_step, **logs, **more})


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second signal ends it at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take over the signals."""
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._receive)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop after this step, if a signal came to any rank; in time for every ``on_step_end``."""
        if _on_any_rank(bool(self.received), args.device):
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Give the signals back."""
        self.release()

    def release(self) -> None:
        """Give the signals back; also for a run that ended by an error."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        self.release()


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Signals reach ranks at different times; ranks that stop at different steps would wait for each other for ever."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    found = torch.tensor(int(flag), device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found.item())
