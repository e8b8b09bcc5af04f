"""Curves of readings: how noisy they are, what is a change on them, and how far they fell from their best level."""

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from statistics import NormalDist, fmean, median
from typing import TypeAlias

_FEW = 10  # readings: fewer are read one by one, more by medians over windows
_MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)
_NO_NOISE = 5  # readings: fewer do not say how noisy they are
_LONG = 100  # readings from which on a running median looks two readings to each side, else one
_QUANTILE = 0.65  # of second differences, by which the noise is measured, ...
_NORMAL = NormalDist().inv_cdf((1 + _QUANTILE) / 2)  # ... and the same of normal noise of deviation 1
_UNSURE = 3.0  # a noise estimated from k bends is taken to be larger by this much over k


_Window: TypeAlias = tuple[float, float, int]
"""Mean, standard error of it, and place of the first reading."""


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
        """From the start to the end; up to ``sigmas`` standard errors may be noise. ``base`` is the value at the start
        where it is known without noise (a log-ratio to the start is 0 there)."""
        first = 1 if self._few else self._first
        error = _MEDIAN * self.noise * math.sqrt((1 / first if base is None else 0) + 1 / self._window)
        start = self.start if base is None else base
        held = min(self.values[-2:], key=lambda value: abs(value - start)) if self._few else self.end
        return Change(start, self.end, held, sigmas * error)

    def drop(self, least: float, sigmas: float, *, base: float | None = None) -> "Drop | None":
        """The fall from the best level to the last readings, if it is a fall by ``least`` or more and not by chance.

        A level is the mean of a window of 1, 2, 4, ... readings, after a running median has taken single outliers out.
        Some window at the end must lie below some earlier one by ``least`` and by ``sigmas`` standard errors, so that a
        deep fall is seen at once and a slow or noisy one when there are readings enough. ``base`` as in
        :meth:`change`: a best level before the first reading.
        """
        return _drop(self, least, sigmas, base)

    def mean_until(self, step: int | None, width: int) -> float:
        """Mean of the last ``width`` readings up to a step, or of all, single outliers taken out; at least of one."""
        last = len(self) if step is None else max(1, bisect_right(self.steps, step))
        return fmean(self._smooth[max(0, last - width) : last])

    def since(self, step: int) -> "Curve":
        """The readings from a step on; the last one at least."""
        first = min(bisect_left(self.steps, step), len(self) - 1)
        return Curve(self.steps[first:], self.values[first:])

    @cached_property
    def start(self) -> float:
        """Median of the first readings; the first one where there are few."""
        return self.values[0] if self._few else median(self.values[: self._first])

    @cached_property
    def end(self) -> float:
        """Median of the last fifth of the readings; the last one where there are few."""
        return median(self.values[-self._window :])

    @cached_property
    def noise(self) -> float:
        """Standard deviation of one reading about the trend, from second differences; 0 where there are too few."""
        return 0.0 if self.is_short else median(_bends(self.values, 1)) / 0.6745

    def minus(self, other: "Curve") -> "Curve":
        """The difference, at the steps that both have."""
        return self.against(other, operator.sub)

    def against(self, other: "Curve", combine: Callable[[float, float], float]) -> "Curve":
        """Both curves' values combined, at the steps that both have."""
        at = dict(zip(other.steps, other.values, strict=True))
        curve = joined((s, combine(v, at[s])) for s, v in zip(self.steps, self.values, strict=True) if s in at)
        if not curve:
            raise MissingReadingsError("readings of different kinds at the same steps")
        return curve

    @cached_property
    def _smooth(self) -> tuple[float, ...]:
        """Running median. Windows are cut at both ends, and of an even number the middle that shows less of a fall is
        taken; the first reading stands as it is, as no other shows the start, and so do both of two: neither can be an
        outlier to the other."""
        if len(self) == 2:
            return self.values
        values, reach = self.values, 1 if len(self) < _LONG else 2
        smooth = []
        for i in range(len(values)):
            near = sorted(values[max(0, i - reach) : i + reach + 1])
            smooth.append(near[(len(near) - 1) // 2 if i < reach else len(near) // 2])
        return (values[0], *smooth[1:])

    @property
    def is_short(self) -> bool:
        """Whether there are too few readings to know how noisy they are."""
        return len(self) < _NO_NOISE

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
        return self.end - self.start

    def rose(self, by: float) -> bool:
        """By at least so much, and not by chance."""
        return self.held - self.start >= by and self.held - self.start > self.doubt

    def fell(self, by: float) -> bool:
        """By at least so much (a positive number), and not by chance."""
        return self.start - self.held >= by and self.start - self.held > self.doubt


@dataclass(frozen=True)
class Drop:
    """A fall from the best level of a curve."""

    best: float
    end: float
    width: int
    """Readings of which ``end`` is the mean."""

    since: int
    """Last step at which the curve was still near its best level."""

    @property
    def amount(self) -> float:
        """How far it fell, a positive number."""
        return self.best - self.end


def joined(points: Iterable[tuple[int, float]]) -> Curve:
    """The curve of (step, value) points, oldest first."""
    steps, values = list(zip(*points, strict=True)) or ((), ())
    return Curve(steps, values)


def _bends(values: Sequence[float], lag: int) -> list[float]:
    """Second differences at a lag, in size: of a straight line 0, of white noise its standard deviation or so."""
    first, middle, last = values, values[lag:], values[2 * lag :]
    return [abs(a - 2 * b + c) / math.sqrt(6) for a, b, c in zip(first, middle, last, strict=False)]


def _scatter(bends: Sequence[float]) -> float:
    """Standard deviation of the noise that makes such bends, from a quantile that a third of them can be too large for
    without harm, as where a curve turns, and that is seldom small by chance, as the median of few often is."""
    if not bends:
        return 0.0
    ordered, place = sorted(bends), _QUANTILE * (len(bends) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return (ordered[low] + (place - low) * (ordered[high] - ordered[low])) / _NORMAL


class _Noise:
    """The standard error of a mean of readings, anywhere on a curve."""

    def __init__(self, curve: Curve, widths: Sequence[int], sums: Sequence[float]) -> None:
        values, n = curve.values, len(curve)
        bends = _bends(values, 1)
        whole = _scatter(bends)
        # neighbours may be alike by correlation; readings further apart are then less so
        lagged = max([whole, *(_scatter(_bends(values, lag)) for lag in (2, 3, 5) if n >= 12 * lag)])
        correlated = lagged / whole if whole else 1.0
        unsure = 1 + _UNSURE / max(1, len(bends))
        # noise often grows with the distance from the start: look near the window, but never trust a quiet place fully
        reach = max(5, n // 8)
        self._every = max(1, reach // 4)
        self._local = []
        for center in range(0, n, self._every):
            first = max(0, min(center - reach - 1, len(bends) - 2 * reach))
            near = _scatter(bends[first : first + 2 * reach])
            self._local.append(max(near, whole / 2) * correlated * unsure)
        self._factor = self._slow_noise(curve, widths, sums, lagged)

    @staticmethod
    def _slow_noise(curve: Curve, widths: Sequence[int], sums: Sequence[float], noise: float) -> dict[int, float]:
        """By how much a mean over a window scatters more than that of independent readings would, at least 1."""
        n, worst, factor = len(curve), 1.0, {}
        for width in widths:
            if noise and width >= 2 and n >= 8 * width:
                every = max(1, width // 4)
                means = [(sums[i + width] - sums[i]) / width for i in range(0, n - width + 1, every)]
                for gap in (width, 2 * width):
                    if n >= 4 * gap + 4 * width:
                        found = _scatter(_bends(means, gap // every))
                        worst = max(worst, found * (1 + _UNSURE * width / n) * math.sqrt(width) / noise)
            factor[width] = worst
        return factor

    def error(self, first: int, width: int) -> float:
        """Of the mean of ``width`` readings from ``first`` on."""
        at = min((first + width // 2) // self._every, len(self._local) - 1)
        return self._local[at] * self._factor[width] / math.sqrt(width)


def _drop(curve: Curve, least: float, sigmas: float, base: float | None) -> Drop | None:
    n = len(curve)
    widths = [1]
    while 2 * widths[-1] <= n // 3:
        widths.append(2 * widths[-1])
    sums = [0.0, *accumulate(curve._smooth)]
    noise = None if curve.is_short else _Noise(curve, widths, sums)

    def mean(first: int, width: int) -> float:
        return (sums[first + width] - sums[first]) / width

    def error(first: int, width: int) -> float:
        return 0.0 if noise is None else noise.error(first, width)

    every = {width: max(1, width // 8) for width in widths}  # wide windows at each place would differ by little
    tops = {
        width: _tops([(mean(i, width), error(i, width), i) for i in range(0, n - width + 1, every[width])])
        for width in widths
    }
    for width in widths:
        last = n - width
        end, doubt = mean(last, width), error(last, width)
        before = [(*tops[size][(last - size) // every[size]], size) for size in widths if size <= last]
        found = [
            (best, at, size)
            for best, err, at, size in before
            if best - end >= max(least, sigmas * math.hypot(err, doubt))
        ]
        if base is not None and base - end >= max(least, sigmas * doubt):
            found.append((base, 0, 1))
        # a wide window may still hold a fall from which the last readings have come back
        back = [size for size in widths if size < width and mean(n - size, size) - end > 2 * error(n - size, size)]
        found = [one for one in found if all(one[0] - mean(n - size, size) >= least / 2 for size in back)]
        if found:
            best, at, size = max(found)
            near = best - max(least / 8, error(at, size))
            stays = [i for i in range(last - size + 1) if mean(i, size) >= near]
            since = curve.steps[stays[-1] + size - 1] if stays else curve.steps[0]
            return Drop(best, end, width, since)
    return None


def _tops(windows: Sequence[_Window]) -> list[_Window]:
    """For each place the highest window up to it, by what is certain of its height."""

    def higher(top: _Window, new: _Window) -> _Window:
        return new if new[0] - 2 * new[1] > top[0] - 2 * top[1] else top

    return list(accumulate(windows, higher))
