"""When to read: at fixed steps, or as often as a tenth of the run's time allows."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import broadcast_object_list

from cwdpo.phases import phase

SHARE = 0.1
"""Most that readings may add to the time of the steps between them."""

_PLANNED = 0.8 * SHARE
"""What is planned, since later readings may cost more than those that were timed."""

_MOST = 40
"""Readings of a stage beyond which a curve only gets denser."""

_WARM_UP = 3
"""Steps before their time is trusted: the first ones compile, fill caches and wait for the data."""


class Schedule:
    """Decides at which steps of a stage there is a reading. The first and the last step always have one."""

    def __init__(
        self, every: int | None, *, clock: Callable[[], float], agree: Callable[[int], int] = lambda step: step
    ) -> None:
        """Read every so many steps; None finds them from the measured cost, see :func:`next_reading`.

        The clock gives seconds, when all work so far is done. All ranks call ``agree`` at the same steps: it gives them
        the first rank's value.
        """
        self.every, self._clock, self._agree = every, clock, agree
        self.spent = self.last_seconds = self.owed = 0.0
        """Seconds of all readings and of what they needed, of the newest reading, and of the probes after the last."""

        self._first = self._last = 0
        self._began = 0.0
        self._next: int | None = None

    def begin(self, step: int, last_step: int) -> None:
        """The stage begins, or goes on, at this step."""
        self._first, self._last, self._next = step, last_step, None
        self._began, self.spent, self.owed = self._clock(), 0.0, 0.0

    @contextmanager
    def preparing(self, *, again_at_end: bool = False) -> Iterator[None]:
        """Inside, time counts as the probes', and is owed where the same is done after the last reading."""
        began = self._clock()
        try:
            with phase("probes"):
                yield
        finally:
            seconds = self._clock() - began
            self.spent += seconds
            self.owed += seconds if again_at_end else 0.0

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Inside, a reading is taken."""
        began = self._clock()
        with phase("probes"):
            yield
        self.last_seconds = self._clock() - began
        self.spent += self.last_seconds
        if step - self._first >= _WARM_UP:
            self._plan(step)

    def is_due(self, step: int) -> bool:
        """Whether there is a reading after this step. Ask once a step."""
        if step >= self._last:
            return True
        if self.every is not None:
            return step % self.every == 0
        if self._next is None and step - self._first >= _WARM_UP:
            self._plan(step)
        return self._next is not None and step >= self._next

    @property
    def share(self) -> float:
        """Time of the readings over the time of everything else so far."""
        rest = self._clock() - self._began - self.spent
        return self.spent / rest if rest > 0 else 0.0

    def _plan(self, step: int) -> None:
        if self.every is not None:
            return
        planned = next_reading(
            step,
            self._last,
            first_step=self._first,
            step_seconds=(self._clock() - self._began - self.spent) / (step - self._first),
            reading_seconds=self.last_seconds,
            spent=self.spent + self.owed,
        )
        self._next = self._agree(planned)


def next_reading(
    step: int, last_step: int, *, first_step: int, step_seconds: float, reading_seconds: float, spent: float
) -> int:
    """The step of the next reading, such that the rest of the stage can pay for it and for the last step's.

    Args:
        first_step: where the stage began, or went on after an interruption.
        step_seconds: of a step without readings.
        spent: seconds that readings have cost so far, all included, and what is owed after the last one.

    Example:
        >>> next_reading(0, 100, first_step=0, step_seconds=1.0, reading_seconds=1.0, spent=1.0)
        15
    """
    budget = _PLANNED * step_seconds * (last_step - first_step) - spent
    payable = math.floor(budget / reading_seconds) if reading_seconds > 0 else _MOST
    if payable < 2:  # the last one takes the first place
        return last_step
    left = last_step - step
    return min(last_step, step + max(math.ceil(left / payable), math.ceil((last_step - first_step) / _MOST)))


def idle_clock() -> float:
    """Seconds, once the GPU has done all that it was given: a reading does not pay for the steps before it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def from_first_rank(step: int) -> int:
    """The first rank's step, on all ranks."""
    found = [step]
    broadcast_object_list(found)
    return found[0]
