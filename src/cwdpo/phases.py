"""Where a run's time goes: seconds by phase, which add up to the whole.

A phase inside another counts for itself alone. Whoever works in a phase writes ``with phase("sampling"):``, without
knowing who keeps the time; where nobody does, nothing happens.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias, get_args

Phase: TypeAlias = Literal[
    "imports", "checks", "loading", "reference pass", "steps", "sampling", "probes", "evaluation", "saving", "report"
]
"""``steps`` is training itself, with its data and logging."""

PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseClock:
    """Counts seconds by phase from when it is made."""

    def __init__(
        self, first: Phase, *, earlier: Mapping[str, float] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin in a phase; ``earlier`` are seconds that are counted already."""
        known = {name: float(seconds) for name, seconds in (earlier or {}).items() if name in PHASES}
        self._seconds: dict[str, float] = {name: known.get(name, 0.0) for name in PHASES}
        self._now: Phase = first
        self._clock, self._since = clock, clock()

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase, until now."""
        self._switch(self._now)
        return dict(self._seconds)

    def add(self, name: Phase, seconds: float) -> None:
        """Count seconds that went by before the clock was made."""
        self._seconds[name] += seconds

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Inside, time counts for this phase, and not for the one around it."""
        outside = self._now
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outside)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, :func:`phase` is this clock's."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)

    def _switch(self, name: Phase) -> None:
        now = self._clock()
        self._seconds[self._now] += now - self._since
        self._now, self._since = name, now


_running: ContextVar[PhaseClock | None] = ContextVar("cwdpo_phases", default=None)


@contextmanager
def phase(name: Phase) -> Iterator[None]:
    """Inside, the time of the run that is going on counts for this phase."""
    clock = _running.get()
    if clock is None:
        yield
    else:
        with clock.phase(name):
            yield
