"""Readings of one number over a stage: where it starts and ends, how noisy it is, and what is a change."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

_FEW = 10  # readings: fewer are read one by one, more by medians over windows
_MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)


class MissingReadingsError(Exception):
    """A sign cannot be judged; the message names the readings it lacks. Never leaves this package."""


@dataclass(frozen=True)
class Curve:
    """Finite readings, oldest first."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def change(self, sigmas: float, *, base: float | None = None) -> "Change":
        """From the start to the end.

        Args:
            sigmas: standard errors up to which a change may be noise.
            base: value at the start where it is known without noise (a log-ratio to the start is 0 there).
        """
        first = 1 if self._few else self._first
        error = _MEDIAN * self.noise * math.sqrt((1 / first if base is None else 0) + 1 / self._window)
        start = self.start if base is None else base
        held = min(self.values[-2:], key=lambda value: abs(value - start)) if self._few else self.end
        return Change(start, self.end, held, sigmas * error)

    @cached_property
    def start(self) -> float:
        """Median of the first readings; the first one where there are few."""
        return self.values[0] if self._few else median(self.values[: self._first])

    @cached_property
    def end(self) -> float:
        """Median of the last fifth of the readings; the last one where there are few."""
        return median(self.values[-self._window :])

    @cached_property
    def lowest(self) -> tuple[float, int]:
        """Lowest level that lasted, and the step in its middle."""
        if self._few:
            pairs = list(zip(self.values, self.values[1:], self.steps[1:], strict=False))
            return min(((max(a, b), step) for a, b, step in pairs), default=(self.values[-1], self.steps[-1]))
        width = self._window
        return min(
            (median(self.values[last - width : last]), self.steps[last - 1 - width // 2])
            for last in range(len(self), width - 1, -width)
        )

    @cached_property
    def noise(self) -> float:
        """Standard deviation of one reading about the trend, from second differences; 0 where there are too few."""
        if len(self) < 5:
            return 0.0
        bends = [abs(a - 2 * b + c) for a, b, c in zip(self.values, self.values[1:], self.values[2:], strict=False)]
        return median(bends) / (0.6745 * math.sqrt(6))

    def scaled(self, factor: float) -> "Curve":
        """The curve with every value times a factor."""
        return Curve(self.steps, tuple(value * factor for value in self.values))

    def minus(self, other: "Curve") -> "Curve":
        """The difference, at the steps that both have."""
        return self.against(other, lambda mine, others: mine - others)

    def against(self, other: "Curve", combine: Callable[[float, float], float]) -> "Curve":
        """Both curves' values combined, at the steps that both have."""
        at = dict(zip(other.steps, other.values, strict=True))
        points = [(s, combine(v, at[s])) for s, v in zip(self.steps, self.values, strict=True) if s in at]
        if not points:
            raise MissingReadingsError("readings of different kinds at the same steps")
        return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))

    @property
    def _few(self) -> bool:
        return len(self) < _FEW

    @property
    def _first(self) -> int:
        # short, because what happens in the first tenth of a run is part of what happened
        return max(3, min(20, len(self) // 10))

    @property
    def _window(self) -> int:
        return 1 if self._few else len(self) // 5


@dataclass(frozen=True)
class Change:
    """How far a curve went."""

    start: float
    end: float
    held: float
    """The end that is judged: of few readings, the one of the last two that moved less; else the same as the end."""

    doubt: float
    """A change of this size may be noise."""

    @property
    def amount(self) -> float:
        """End minus start."""
        return self.end - self.start

    def rose(self, by: float) -> bool:
        """By at least so much, and not by chance."""
        return self.held - self.start >= by and self.held - self.start > self.doubt

    def fell(self, by: float) -> bool:
        """By at least so much (a positive number), and not by chance."""
        return self.start - self.held >= by and self.start - self.held > self.doubt
