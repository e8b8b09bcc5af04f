"""How long a run has taken, over all the sessions that went on with it."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.records.run_directory import RunDirectory

_BETWEEN_WRITES = 10.0
"""Seconds; a session that is killed loses no more of its own time than this."""


class WallTime(TrainerCallback):
    """A clock that goes on where the run's earlier sessions left it."""

    def __init__(self, run: RunDirectory, *, writes: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Take up a run's clock; of several processes one writes. Use it in ``contextlib.closing``."""
        self._run, self._writes, self._clock = run, writes, clock
        self._earlier = float(run.kept("wall_time").get("seconds", 0.0))
        self._began = self._kept_at = clock()

    @property
    def seconds(self) -> float:
        """Of all sessions, this one until now."""
        return self._earlier + self._clock() - self._began

    def close(self) -> None:
        """Write down what this session took, for a later one; not where no run has begun."""
        if self._writes and self._run.recipe.is_file():
            self._kept_at = self._clock()
            self._run.keep("wall_time", {"seconds": round(self.seconds, 3)})

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write it down every few seconds, as a killed process says nothing at its end."""
        if self._clock() - self._kept_at >= _BETWEEN_WRITES:
            self.close()
