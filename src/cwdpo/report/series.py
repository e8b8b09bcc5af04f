"""One metric of one run, as it is drawn: readings in order, smoothed and thinned without hiding gaps or spikes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

Point = tuple[float, float | None]
"""x and y of one reading; y is None where the logged value was not a finite number."""

_ABSURD = 1e30
"""Larger magnitudes are treated like infinity: no axis could show them beside anything else."""


def finite(value: object) -> float | None:
    """The value as a float, or None where it is not a finite number.

    Example:
        >>> finite(3), finite("3"), finite(float("nan")), finite(True)
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < _ABSURD else None


@dataclass(frozen=True)
class Segment:
    """The readings of one metric within one stage of a run."""

    stage: str
    points: tuple[Point, ...]

    @property
    def values(self) -> list[float]:
        """The finite readings, oldest first."""
        return [y for _, y in self.points if y is not None]

    @property
    def start(self) -> float | None:
        """Mean of the first tenth of the readings (at least one)."""
        return _mean(self.values[: _tenth(len(self.values))])

    @property
    def end(self) -> float | None:
        """Mean of the last tenth of the readings (at least one)."""
        return _mean(self.values[-_tenth(len(self.values)) :])

    @property
    def moved(self) -> float:
        """End less start, or 0 where the readings scatter so much that this may be chance.

        The scatter is taken from second differences, which a steady trend leaves at 0; a change counts from twice its
        standard error, as if readings were independent.
        """
        values = self.values
        if self.start is None or self.end is None:
            return 0.0
        bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
        variance = math.fsum(bend * bend for bend in bends) / (6 * len(bends)) if bends else 0.0
        change = self.end - self.start
        return change if abs(change) >= 2 * math.sqrt(2 * variance / _tenth(len(values))) else 0.0


@dataclass(frozen=True)
class Series:
    """One metric of one run: a segment a stage, in the order of training."""

    segments: tuple[Segment, ...]

    @property
    def values(self) -> list[float]:
        """Every finite reading, oldest first."""
        return [y for segment in self.segments for y in segment.values]

    @property
    def end(self) -> float | None:
        """Where the last stage that has finite readings ended; None where there are none."""
        return next((s.end for s in reversed(self.segments) if s.values), None)

    @property
    def num_broken(self) -> int:
        """How many readings were not finite numbers."""
        return sum(y is None for segment in self.segments for _, y in segment.points)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred moving average over about a twentieth of the readings; a gap stays a gap.

    Fewer than 12 readings are returned as they are. The window shrinks at both ends, so nothing lags.
    """
    if len(points) < 12:
        return list(points)
    half = max(1, len(points) // 40)
    sums = [0.0, *accumulate(y or 0.0 for _, y in points)]
    counts = [0, *accumulate(y is not None for _, y in points)]
    out: list[Point] = []
    for i, (x, y) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        low, high = i - reach, i + reach + 1
        out.append((x, None if y is None else (sums[high] - sums[low]) / (counts[high] - counts[low])))
    return out


def thinned(points: Sequence[Point], *, most: int) -> list[Point]:
    """At most about ``most`` points that keep the highest and lowest reading, and any gap, of every stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    return [point for i in range(0, len(points), size) for point in _extremes(points[i : i + size])]


def _extremes(stretch: Sequence[Point]) -> Iterator[Point]:
    """Lowest and highest reading in their order, then the gap if there is one."""
    known = [(x, y) for x, y in stretch if y is not None]
    if known:
        yield from sorted({min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])})
    if len(known) < len(stretch):
        yield next(point for point in stretch if point[1] is None)


def _tenth(count: int) -> int:
    return max(1, count // 10)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
