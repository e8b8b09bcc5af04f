"""How far a long command is: a bar for each part of the work on a terminal, else lines or nothing."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield ProgressLines()
        return
    with bars() as on_progress:
        yield on_progress


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work on a terminal, else nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield on_progress


class ProgressLines:
    """A line on standard error for what is going on, at most every few seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = self._clock()
            print(f"evaluation  {what} {done}/{total}", file=sys.stderr, flush=True)
