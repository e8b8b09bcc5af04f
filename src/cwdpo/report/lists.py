"""Readings that are lists: how negatives spread over cooling weights, and how right a model is at each confidence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.report.series import finite

HISTOGRAM = "cooling/histogram"
RELIABILITY = "reliability"
NUM_BINS = 10
"""Bins of equal width that cooling weights are counted in."""


@dataclass(frozen=True)
class Histogram:
    """Negatives of a stretch of steps, counted by their cooling weight."""

    begin: float
    """The step after which counting began."""

    end: float
    counts: tuple[float, ...]
    """One count a bin of w_c, from 0 up."""

    @property
    def shares(self) -> list[float]:
        """Each bin's share of the negatives."""
        return [count / math.fsum(self.counts) for count in self.counts]


@dataclass(frozen=True)
class Bin:
    """Tokens of like confidence."""

    n: float
    confidence: float
    """Mean probability of the likeliest token."""

    accuracy: float
    """How often that was the right one."""


@dataclass(frozen=True)
class Reliability:
    """Calibration at one reading: the bins that hold tokens."""

    stage: str
    step: int
    bins: tuple[Bin, ...]

    @property
    def n(self) -> float:
        """Tokens in all bins."""
        return math.fsum(found.n for found in self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, by token."""
        return math.fsum(found.n * abs(found.accuracy - found.confidence) for found in self.bins) / self.n


def read_histograms(records: Sequence[Mapping[str, Any]], starts: Mapping[str, int]) -> tuple[list[Histogram], int]:
    """The histograms of metric lines that are sorted by stage and step, and how many could not be read.

    Args:
        records: with ``stage`` and ``step``.
        starts: stage -> the step of the whole run at which it begins.
    """
    found, broken, ends = [], 0, {stage: float(start) for stage, start in starts.items()}
    for record in records:
        if HISTOGRAM not in record:
            continue
        counts = _numbers(record[HISTOGRAM], NUM_BINS)
        if counts is None or min(counts) < 0:
            broken += 1
            continue
        stage = record["stage"]
        begin, end = ends[stage], float(starts[stage] + record["step"])
        ends[stage] = end
        if math.fsum(counts) > 0 and end > begin:
            found.append(Histogram(begin, end, counts))
    return found, broken


def joined_histograms(histograms: Sequence[Histogram], *, most: int) -> list[Histogram]:
    """At most ``most`` of them: neighbours are added up where there are more."""
    size = math.ceil(len(histograms) / most) if histograms else 1
    return [_added(histograms[i : i + size]) for i in range(0, len(histograms), size)]


def _added(group: Sequence[Histogram]) -> Histogram:
    columns = zip(*(histogram.counts for histogram in group), strict=True)
    return Histogram(group[0].begin, group[-1].end, tuple(math.fsum(column) for column in columns))


def read_reliability(records: Sequence[Mapping[str, Any]]) -> tuple[list[Reliability], int]:
    """The reliability of probe lines that are sorted by stage and step, and how many could not be read."""
    found, broken = [], 0
    for record in records:
        if RELIABILITY not in record:
            continue
        bins = list(_bins(record[RELIABILITY]))
        if not bins or None in bins:
            broken += 1
            continue
        filled = tuple(one for one in bins if one is not None and one.n > 0)
        if filled:
            found.append(Reliability(record["stage"], record["step"], filled))
    return found, broken


def first_and_last(readings: Sequence[Reliability]) -> list[Reliability]:
    """The first and the last reading of the last stage; one where there is only one."""
    last = [reading for reading in readings if reading.stage == readings[-1].stage]
    return last if len(last) < 2 else [last[0], last[-1]]


def _bins(value: object) -> Iterator[Bin | None]:
    for entry in value if isinstance(value, list) else []:
        numbers = _numbers(entry, 3)
        if numbers is None or numbers[0] < 0 or not all(0 <= share <= 1 for share in numbers[1:]):
            yield None
        else:
            yield Bin(*numbers)


def _numbers(value: object, length: int) -> tuple[float, ...] | None:
    """A list of so many finite numbers, else None."""
    if not isinstance(value, list) or len(value) != length:
        return None
    numbers = [finite(item) for item in value]
    known = tuple(number for number in numbers if number is not None)
    return known if len(known) == length else None
