"""Callbacks of a stage: its metrics on disk, its progress on the terminal, and its end on a signal."""

import signal
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from cwdpo.models.checkpoints import rotate_checkpoints, seal_checkpoint
from cwdpo.records import MetricName, RunDirectory, Stage, append_jsonl
from cwdpo.trainer_protocol import TrainerProtocol

Logs: TypeAlias = Mapping[str, Any] | None
"""What the Trainer logs at a step."""


def restored(callback: TrainerCallback, state: TrainerState) -> dict[str, Any] | None:
    """The attributes of a callback in the checkpoint that training goes on from; None where training begins. The
    Trainer's fresh state then holds what the callback has kept of a training before."""
    known: Any = state.stateful_callbacks or {}
    saved = known.get(type(callback).__name__)
    return dict(saved["attributes"]) if state.global_step and isinstance(saved, dict) else None


class MetricsRecorder(TrainerCallback):
    """Writes each log line of a stage to ``metrics.jsonl``; a resumed stage replaces what it repeats."""

    def __init__(
        self, run: RunDirectory, stage: Stage, *, histograms: Callable[[], Mapping[str, list[int]]] = dict
    ) -> None:
        """``histograms`` gives what a line of training holds beside the scalars that the Trainer logs."""
        self.run, self.stage, self._histograms = run, stage, histograms

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Drop lines that were written after the checkpoint that the stage resumes from."""
        if state.is_world_process_zero:
            self.run.truncate_after(self.stage, state.global_step)

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, logs: Logs = None, **kwargs: object
    ) -> None:
        """Write a line; not the Trainer's closing one, which repeats means, nor probes, which have their own file."""
        elsewhere = any(name == "train_runtime" or name.startswith("probes/") for name in logs or {})
        if state.is_world_process_zero and logs and not elsewhere:
            more = self._histograms() if "loss" in logs else {}
            line = {"stage": self.stage, "step": state.global_step, **logs, **more}
            append_jsonl(self.run.metrics, [line])


class Sealing(TrainerCallback):
    """Seals each checkpoint when it is written, and only then removes the old ones."""

    def __init__(self, trainer: TrainerProtocol, directory: Path, limit: int | None) -> None:
        """``directory`` has the checkpoints; ``limit`` is the Trainer's ``save_total_limit``."""
        self.trainer, self.directory, self.limit = trainer, directory, limit

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.trainer.accelerator.wait_for_everyone()  # each rank writes files of its own
        if self._seal(state):
            rotate_checkpoints(self.directory, self.limit, best=state.best_model_checkpoint)
        args.save_total_limit = self.limit
        self.trainer.accelerator.wait_for_everyone()

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """The Trainer uploads a checkpoint before it says that it is saved, and the copy must be whole too. Of several
        processes the others may still be writing: arguments refuse such uploads there, and of all others nothing is
        sealed here."""
        if "checkpoint" in HubStrategy(args.hub_strategy).value:
            self._seal(state)

    def _seal(self, state: TrainerState) -> bool:
        """Seal the checkpoint of this step; False where there is none, or another process does it."""
        checkpoint = self.directory / f"checkpoint-{state.global_step}"
        if not (state.is_world_process_zero and checkpoint.is_dir()):
            return False
        seal_checkpoint(checkpoint)
        return True


class StopOnSignal(TrainerCallback):
    """Ctrl-C and SIGTERM end the run after the current step, with a checkpoint; a second signal ends it at once."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        for number in self._SIGNALS:
            self._before[number] = signal.signal(number, self._receive)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop after this step, if a signal came to any rank; in time for every ``on_step_end``."""
        if _on_any_rank(bool(self.received), args.device):
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the signals back; also for a run that ended by an error."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        self.release()


class ReferencePassCallback(TrainerCallback):
    """A callback that also hears of the reference pass, which comes before stage 2's first step."""

    def on_reference_pass(self, done: int, total: int) -> None:
        """So many of the first rank's batches are done."""
        raise NotImplementedError


_SHOWN: Mapping[MetricName, str] = {"loss": "loss", "rewards/margins": "margin", "cooling/mean": "w_c"}
_SECONDS_BETWEEN_LINES = 5.0
"""Of the reference pass."""

_LINES = 10
"""Of a stage in a log file, beside its first steps and its last; more where one would come after many minutes."""

_LONGEST_SILENCE = 600.0
"""Seconds."""


class StageProgress(ReferencePassCallback):
    """Stage, step, loss, margin, mean w_c and time left; on rank 0 only. A bar on a terminal; elsewhere lines, at the
    first steps, at each tenth of the stage, and at its last step.

    Takes the place of what transformers prints: set ``disable_tqdm=True``, and remove its ``PrinterCallback``. Wrap it
    in ``contextlib.closing``, so that an error in training gives the terminal back. One serves all stages in turn.
    """

    def __init__(
        self, stage: str | None = None, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The stage's name is by default the last part of the trainer's output directory."""
        self._given, self._console, self._clock = stage, console or Console(), clock
        self._stage = stage or ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._latest = ""
        self._first: tuple[float, int] | None = None
        """When which step was the first to end: it is left out of the rate, as the engine checks itself in it."""
        self._line_at, self._line_step = 0.0, -1

    def on_reference_pass(self, done: int, total: int) -> None:
        """Print how far it is, at most every few seconds."""
        now = self._clock()
        if done < total and now - self._line_at < _SECONDS_BETWEEN_LINES:
            return
        self._line_at = now
        line = f"reference  batch {done}/{total}"
        if self._console.is_terminal:
            self._console.print(line, end="\n" if done == total else "\r", highlight=False, markup=False)
        else:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the bar, at the step that a resumed run continues from."""
        if not state.is_world_process_zero:
            return
        self._stage = self._given or Path(str(args.output_dir)).name
        self._latest = ""
        self._first = None
        self._line_at, self._line_step = self._clock(), -1
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(self._stage, total=state.max_steps, completed=state.global_step, values="")
            self._bar.start()

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, logs: Logs = None, **kwargs: object
    ) -> None:
        first = not self._latest
        found = [(word, (logs or {}).get(name)) for name, word in _SHOWN.items()]
        if any(value is not None for _, value in found):
            self._latest = "  ".join(f"{word} {value:z.3f}" for word, value in found if value is not None)
        if self._bar is not None:
            self._bar.update(self._task, values=self._latest)
        elif first and state.is_world_process_zero and "loss" in (logs or {}) and state.global_step < state.max_steps:
            self._write_line(state)

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Move the bar, or write a line where one is due."""
        is_second = self._first is not None and state.global_step == self._first[1] + 1
        if self._first is None:
            self._first = (self._clock(), state.global_step)
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=self._stage)
        elif state.is_world_process_zero and (is_second or self._is_due(state)) and state.global_step < state.max_steps:
            self._write_line(state)  # the last step's follows when its loss is known

    def on_prediction_step(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Show that the bar stands still because the model is being evaluated."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._stage} (evaluating)")

    def on_evaluate(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Show that training goes on."""
        if self._bar is not None:
            self._bar.update(self._task, description=self._stage)

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Write the last line, wherever the stage ended."""
        if self._bar is None and state.is_world_process_zero and not self._console.is_terminal:
            self._write_line(state)
        self.close()

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back, also after an error in training."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _is_due(self, state: TrainerState) -> bool:
        tenth = _LINES * state.global_step // state.max_steps
        before = _LINES * (state.global_step - 1) // state.max_steps
        return tenth > before or self._clock() - self._line_at >= _LONGEST_SILENCE

    def _write_line(self, state: TrainerState) -> None:
        if self._line_step == state.global_step and state.global_step < state.max_steps:
            return
        self._line_at, self._line_step = self._clock(), state.global_step
        parts = [self._stage, f"step {state.global_step}/{state.max_steps}", self._latest, self._time_left(state)]
        self._console.print("  ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)

    def _time_left(self, state: TrainerState) -> str:
        if self._first is None or state.global_step <= self._first[1] or state.global_step >= state.max_steps:
            return ""
        began, first = self._first
        seconds = (self._clock() - began) / (state.global_step - first) * (state.max_steps - state.global_step)
        return f"{timedelta(seconds=round(seconds))} left"


class TensorBoardRecorder(TrainerCallback):
    """Writes every scalar that a stage logs; on the first rank only. A resumed stage replaces what it repeats."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory  # made when training begins
        self._writer: Any = None

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Open a file; what earlier files hold of steps after the checkpoint's no longer counts."""
        if state.is_world_process_zero:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorBoard's own, on its dependencies
                from torch.utils.tensorboard import SummaryWriter

                purge = state.global_step + 1 if state.global_step else 0
                self._writer = SummaryWriter(str(self._directory), purge_step=purge)

    def on_log(
        self, args: object, state: TrainerState, control: TrainerControl, logs: Logs = None, **kwargs: object
    ) -> None:
        """Write a line's scalars; not the Trainer's closing line, which repeats means."""
        values = logs or {}
        if self._writer is None or "train_runtime" in values:
            return
        for name, value in values.items():
            again = name == "epoch" and "loss" not in values  # stands on every line of a step, and is written once
            if isinstance(value, int | float) and not again:
                self._writer.add_scalar(name, value, state.global_step)
        self._writer.flush()

    def on_train_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, also after an error in training."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Signals reach ranks at different times; ranks that stop at different steps would wait for each other forever."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    found = torch.tensor(int(flag), device=device)
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return bool(found.item())
