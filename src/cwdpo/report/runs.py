"""What run directories hold, read without torch: curves on one axis of steps, summaries, and notes on what was odd."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.errors import UserError
from cwdpo.records import RunDirectory, read_jsonl
from cwdpo.report.charts import Point, Segment, Series, finite

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


Record = dict[str, Any]
_PLACE = ("stage", "step", "epoch", "group", "n")
"""Keys that say where a reading belongs rather than what was measured."""


@dataclass(frozen=True)
class Run:
    """One run directory: every curve on one axis that counts the steps of all its stages."""

    name: str
    path: Path
    summary: Mapping[str, Any]
    stages: Mapping[str, int]
    """Stage -> the step of the whole run at which it begins, in the order of training."""

    num_steps: int
    metrics: Mapping[str, Series]
    probes: Mapping[tuple[str, str], Series]
    """(answer group, reading) -> curve."""

    histograms: Sequence[Histogram] = ()
    """Negatives by cooling weight, oldest first."""

    reliability: Sequence[Reliability] = ()
    """Of the chosen group, oldest first."""


@dataclass
class Source:
    """One path the user gave: a run, or a directory with one run a method and a summary that compares them."""

    path: Path
    summary: Record = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


def read_sources(paths: Sequence[Path], notes: list[str], *, wait: bool = False) -> list[Source]:
    """Read every path; what had to be skipped is told in ``notes``.

    Args:
        paths: run directories, or directories of them.
        notes: is added to.
        wait: a directory that holds nothing yet is read as a source without runs.

    Raises:
        UserError: a path is not a directory, or holds nothing that can be shown.
    """
    if not paths:
        raise UserError("no run to report on. Give at least one run directory: `cwdpo report RUN`.")
    distinct = list(dict.fromkeys(path.resolve() for path in paths))
    return [_read_source(path, notes, wait=wait) for path in distinct]


def _read_source(path: Path, notes: list[str], *, wait: bool) -> Source:
    if not path.is_dir():
        raise UserError(
            f"{path} is not a directory. Give the output_dir of a run, for example `cwdpo report runs/cwdpo`."
        )
    source = Source(path, _read_summary(path, notes))
    if RunDirectory(path).metrics.is_file():
        directories = [path]
    else:
        directories = [child for child in sorted(path.iterdir()) if RunDirectory(child).metrics.is_file()]
    rows = _row_names(source.summary)
    order = {_plain(name): i for i, name in enumerate(rows)}
    directories.sort(key=lambda child: order.get(_plain(child.name), len(order)))
    source.runs = [run for run in (_read_run(child, rows, notes) for child in directories) if run is not None]
    if not source.runs and not rows and not wait:
        raise UserError(
            f"{path} holds no run to show: neither it nor a directory in it has a metrics.jsonl with a readable line. "
            "Give the output_dir of a run that has logged at least one step."
        )
    return source


def _read_run(path: Path, rows: Sequence[str], notes: list[str]) -> Run | None:
    directory = RunDirectory(path)
    metrics, probes = _read_placed(directory.metrics, notes), _read_placed(directory.probes, notes)
    if not metrics and not probes:
        return None
    summary = _read_summary(path, notes)
    lengths = _lengths([*metrics, *probes], summary)
    starts: dict[str, int] = {}
    for stage in lengths:
        starts[stage] = sum(lengths[before] for before in starts)
    histograms, broken_histograms = read_histograms(metrics, starts)
    reliability, broken_reliability = read_reliability([r for r in probes if r["group"] == "chosen"])
    run = Run(
        name=_run_name(path, summary, rows),
        path=path,
        summary=summary,
        stages=starts,
        num_steps=sum(lengths.values()),
        metrics={key: curve for (_, key), curve in _curves(metrics, starts).items()},
        probes=_curves(probes, starts),
        histograms=histograms,
        reliability=reliability,
    )
    _note_broken(run, notes)
    for key, count in ((HISTOGRAM, broken_histograms), (RELIABILITY, broken_reliability)):
        if count:
            notes.append(f"{run.name}: {key} could not be read in {counted(count, 'line')}.")
    return run


def _lengths(records: Sequence[Record], summary: Mapping[str, Any]) -> dict[str, int]:
    """Stage -> how many steps it took, in the order of training."""
    lengths: dict[str, int] = {}
    for record in records:
        stage = str(record["stage"])
        lengths[stage] = max(lengths.get(stage, _told_steps(summary, stage)), record["step"])
    return lengths


def _told_steps(summary: Mapping[str, Any], stage: str) -> int:
    """How many steps the summary says the stage took: the last of them need not have been logged."""
    stages = summary.get("stages")
    told = stages.get(stage) if isinstance(stages, dict) else None
    return int(finite(told.get("steps")) or 0) if isinstance(told, dict) else 0


def _read_placed(path: Path, notes: list[str]) -> list[Record]:
    """The lines that say their step, sorted by stage and step; a step told twice keeps its last value of each key."""
    records = _read_lines(path, notes)
    merged: dict[tuple[str, str, int], Record] = {}
    lost = 0
    for record in records:
        step = finite(record.get("step"))
        if step is None or step < 0:
            lost += 1
            continue
        place = (str(record.get("stage", "run")), str(record.get("group", "")), int(step))
        merged.setdefault(place, {}).update(record, stage=place[0], group=place[1], step=place[2])
    if lost:
        notes.append(f"{_short(path)}: {counted(lost, 'line')} without a step left out.")
    order = list(dict.fromkeys(stage for stage, _, _ in merged))
    return sorted(merged.values(), key=lambda record: (order.index(record["stage"]), record["step"]))


def _curves(records: Sequence[Record], starts: Mapping[str, int]) -> dict[tuple[str, str], Series]:
    points: dict[tuple[str, str], dict[str, list[Point]]] = {}
    for record in records:
        x = float(starts[record["stage"]] + record["step"])
        for key, value in record.items():
            if key not in _PLACE and not isinstance(value, list):  # a histogram is no curve
                curve = points.setdefault((record["group"], key), {})
                curve.setdefault(record["stage"], []).append((x, finite(value)))
    return {
        place: Series(tuple(Segment(stage, tuple(found)) for stage, found in stages.items()))
        for place, stages in points.items()
    }


def _note_broken(run: Run, notes: list[str]) -> None:
    named = {**run.metrics, **{f"{group} {key}": curve for (group, key), curve in run.probes.items()}}
    broken = {key: curve.num_broken for key, curve in named.items() if curve.num_broken}
    if broken:
        told = ", ".join(f"{key} ({count})" for key, count in sorted(broken.items()))
        notes.append(f"{run.name}: readings that are not finite numbers leave a gap in the curve: {told}.")


def _read_lines(path: Path, notes: list[str]) -> list[Record]:
    """Every readable object of a JSON-lines file; a missing file has none."""
    found = read_jsonl(path)
    if found.skipped:
        notes.append(f"{_short(path)}: {counted(found.skipped, 'line')} could not be read, and the others are shown.")
    return found.objects


def _read_summary(path: Path, notes: list[str]) -> Record:
    file = RunDirectory(path).summary
    if not file.is_file():
        return {}
    try:
        summary = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        notes.append(f"{_short(file)} is not readable JSON ({error}) and was left out.")
        return {}
    if isinstance(summary, dict):
        return summary
    notes.append(f"{_short(file)} holds no JSON object and was left out.")
    return {}


def objects(holder: object, key: str) -> list[Record]:
    """The JSON objects of the list that stands under a key; nothing where there is no such list."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "line"), counted(2, "line")
        ('1 line', '2 lines')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _short(path: Path) -> str:
    """File and directory: pages are passed on, and where the runs lay is nobody else's business."""
    return f"{path.parent.name}/{path.name}"


def _row_names(summary: Mapping[str, Any]) -> list[str]:
    return [str(row["name"]) for row in objects(summary.get("table"), "rows") if "name" in row]


def _run_name(path: Path, summary: Mapping[str, Any], rows: Sequence[str]) -> str:
    """The name the comparison table gives this directory (``cw_dpo`` is CW-DPO), else its own title, else its name."""
    match = next((row for row in rows if _plain(row) == _plain(path.name)), None)
    return match or str(summary.get("title") or path.name)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
