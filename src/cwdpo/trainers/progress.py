"""What a run shows while it trains: one bar on a terminal, and plain lines in a file or a pipe."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

_SHOWN = {"loss": "loss", "rewards/margins": "margin", "cooling/mean": "w_c"}
_SECONDS_BETWEEN_LINES = 5.0


class StageProgress(TrainerCallback):
    """Stage, step, loss, margin, mean w_c and time left; on rank 0 only.

    Takes the place of what transformers prints: set ``disable_tqdm=True``, and remove its ``PrinterCallback``. Wrap it
    in ``contextlib.closing``, so that training that breaks off gives the terminal back. One serves all stages in turn.
    """

    def __init__(
        self, stage: str | None = None, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show what is trained.

        Args:
            stage: its name; by default the last part of the trainer's output directory.
            console: where to; by default standard output.
            clock: seconds, for the plain lines.
        """
        self._given, self._console, self._clock = stage, console or Console(), clock
        self._stage = stage or ""
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._latest = ""
        self._begun_at, self._begun_step, self._line_at = 0.0, 0, 0.0

    def on_opening(self, done: int, total: int) -> None:
        """Say how far stage 2's opening pass is, which comes before its first step."""
        now = self._clock()
        if done < total and now - self._line_at < _SECONDS_BETWEEN_LINES:
            return
        self._line_at = now
        line = f"reference  batch {done}/{total}"
        if self._console.is_terminal:
            self._console.print(line, end="\n" if done == total else "\r", highlight=False, markup=False)
        else:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the bar, at the step that a resumed run goes on from."""
        if not state.is_world_process_zero:
            return
        self._stage = self._given or Path(args.output_dir).name
        self._latest = ""
        self._begun_at, self._begun_step = self._clock(), state.global_step
        self._line_at = self._begun_at
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

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Remember the newest numbers."""
        first = not self._latest
        found = [(word, (logs or {}).get(name)) for name, word in _SHOWN.items()]
        if any(value is not None for _, value in found):
            self._latest = "  ".join(f"{word} {value:.3f}" for word, value in found if value is not None)
        if self._bar is not None:
            self._bar.update(self._task, values=self._latest)
            return
        due = first or self._is_due() or state.global_step >= state.max_steps
        if due and state.is_world_process_zero and "loss" in (logs or {}):
            self._write_line(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, or write a line every few seconds."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=self._stage)
        elif state.is_world_process_zero and self._is_due():
            self._write_line(state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that the bar stands still because the model is being evaluated."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._stage} (evaluating)")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that training goes on."""
        if self._bar is not None:
            self._bar.update(self._task, description=self._stage)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bar as it is and give the terminal back."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training broke off."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _is_due(self) -> bool:
        return self._clock() - self._line_at >= _SECONDS_BETWEEN_LINES

    def _write_line(self, state: Any) -> None:
        self._line_at = self._clock()
        parts = [self._stage, f"step {state.global_step}/{state.max_steps}", self._latest, self._time_left(state)]
        self._console.print("  ".join(part for part in parts if part), highlight=False, markup=False, soft_wrap=True)

    def _time_left(self, state: Any) -> str:
        done = state.global_step - self._begun_step
        if done < 1:
            return ""
        seconds = (self._clock() - self._begun_at) / done * (state.max_steps - state.global_step)
        return f"{timedelta(seconds=round(seconds))} left"
