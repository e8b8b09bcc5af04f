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

    def __init__(self, run: RunDirectory, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._earlier = float(run.kept("wall_time").get("seconds", 0.0))
        self._began = self._kept_at = clock()

    @property
    def seconds(self) -> float:
        """Of all sessions, this one until now."""
        return self._earlier + self._clock() - self._began

    def keep(self) -> None:
        """Write it down for a later session."""
        self._kept_at = self._clock()
        self._run.keep("wall_time", {"seconds": round(self.seconds, 3)})

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write it down every few seconds, as a killed process says nothing at its end."""
        if state.is_world_process_zero and self._clock() - self._kept_at >= _BETWEEN_WRITES:
            self.keep()
