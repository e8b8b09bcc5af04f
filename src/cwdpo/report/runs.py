"""What run directories hold, read without torch: curves on one axis of steps, summaries, and notes on what was odd."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cwdpo.contents import RUN, kind_of, refusal
from cwdpo.errors import UserError
from cwdpo.records import COOLING_HISTOGRAM, HISTOGRAM_BINS, RunDirectory, read_jsonl, read_object
from cwdpo.report.charts import Point, Segment, Series, finite

Record: TypeAlias = dict[str, Any]

_RELIABILITY = "reliability"
_PLACE = ("stage", "step", "epoch", "group", "n")
"""Keys that say where a reading belongs rather than what was measured."""


@dataclass(frozen=True)
class Histogram:
    """Negatives of the steps after ``begin``, counted by their cooling weight: one count a bin of w_c, from 0 up."""

    begin: float
    end: float
    counts: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        return [count / math.fsum(self.counts) for count in self.counts]


class Bin(NamedTuple):
    """Tokens of similar confidence: the mean probability of the most likely token, and how often it was right."""

    n: float
    confidence: float
    accuracy: float


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
    reliability: Sequence[Reliability] = ()
    """Of the chosen group, oldest first."""

    epoch: tuple[int, float] | None = None
    """Step of its stage and epoch of the last line that has one."""

    num_probed: int = 0
    """Rows of the probe set, as far as its lines say: those that have a chosen answer."""


@dataclass
class Source:
    """One path the user gave: a run, or a directory with one run a method and a summary that compares them."""

    path: Path
    summary: Record = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)


def read_sources(paths: Sequence[Path], notes: list[str], *, wait: bool = False) -> list[Source]:
    """Read run directories, or directories of them; ``notes`` gets sentences on what had to be skipped.

    A UserError for a path that is not a directory, or holds nothing to show (unless it is waited for).
    """
    if not paths:
        raise UserError("no run to report on. Give at least one run directory: `cwdpo report RUN`.")
    return [_read_source(path, notes, wait=wait) for path in dict.fromkeys(path.resolve() for path in paths)]


def aligned(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Put runs that start from another's stage (the ``model`` of their summary) after it; returns a sentence on each.

    Only runs that lie beside each other are matched, by the names of directory and stage, so that a tree of runs can be
    moved. Steps then count from the first ancestor.
    """
    parents = {run.path: parent for run in runs if (parent := _parent(run, runs))}
    moved, sentences = [], []
    for run in runs:
        begin = _begin(run, parents, len(runs))
        moved.append(_shifted(run, begin) if begin else run)
        if begin:
            origin, stage = parents[run.path]
            sentences.append(f"{run.name} continues {origin.name}'s {stage_label(stage)} from step {begin}.")
    return moved, sentences


def read_histograms(records: Sequence[Record], starts: Mapping[str, int]) -> tuple[list[Histogram], int]:
    """The histograms of metric lines that are sorted by stage and step, and how many could not be read."""
    found, broken, ends = [], 0, {stage: float(start) for stage, start in starts.items()}
    for record in records:
        if COOLING_HISTOGRAM not in record:
            continue
        counts = numbers(record[COOLING_HISTOGRAM])
        if counts is None or len(counts) != HISTOGRAM_BINS or min(counts) < 0:
            broken += 1
            continue
        stage = record["stage"]
        begin, end = ends[stage], float(starts[stage] + record["step"])
        ends[stage] = end
        if math.fsum(counts) > 0 and end > begin:
            found.append(Histogram(begin, end, tuple(counts)))
    return found, broken


def joined_histograms(histograms: Sequence[Histogram], *, most: int) -> list[Histogram]:
    """At most ``most`` of them: neighbours are added up where there are more."""
    size = math.ceil(len(histograms) / most) if histograms else 1
    groups = [histograms[i : i + size] for i in range(0, len(histograms), size)]
    return [
        Histogram(group[0].begin, group[-1].end, tuple(map(math.fsum, zip(*(h.counts for h in group), strict=True))))
        for group in groups
    ]


def read_reliability(records: Sequence[Record]) -> tuple[list[Reliability], int]:
    """The reliability of probe lines that are sorted by stage and step, and how many could not be read."""
    found, broken = [], 0
    for record in records:
        if _RELIABILITY not in record:
            continue
        filled = read_bins(record[_RELIABILITY])
        if filled is None:
            broken += 1
        elif filled:
            found.append(Reliability(record["stage"], record["step"], filled))
    return found, broken


def read_bins(value: object) -> tuple[Bin, ...] | None:
    """The bins that hold tokens, of ``reliability`` as files have it; None where it cannot be read."""
    known = [_bin(entry) for entry in value] if isinstance(value, list) else []
    bins = [one for one in known if one is not None]
    if not bins or len(bins) < len(known):
        return None
    return tuple(one for one in bins if one.n > 0)


def first_and_last(readings: Sequence[Reliability]) -> list[Reliability]:
    """The first and the last reading of the last stage; one where there is only one."""
    last = [reading for reading in readings if reading.stage == readings[-1].stage]
    return last if len(last) < 2 else [last[0], last[-1]]


def numbers(value: object) -> list[float] | None:
    """A list of finite numbers, else None."""
    if not isinstance(value, list):
        return None
    known = [number for item in value if (number := finite(item)) is not None]
    return known if len(known) == len(value) else None


def objects(holder: object, key: str) -> list[Record]:
    """The JSON objects of the list under a key; nothing where there is no such list."""
    found = holder.get(key) if isinstance(holder, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "line"), counted(2, "line")
        ('1 line', '2 lines')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def stage_label(stage: str) -> str:
    """``stage2`` as people write it.

    Example:
        >>> stage_label("stage2"), stage_label("warm_up")
        ('stage 2', 'warm up')
    """
    return f"stage {stage[5:]}" if stage.startswith("stage") and stage[5:].isdigit() else stage.replace("_", " ")


def _read_source(path: Path, notes: list[str], *, wait: bool) -> Source:
    if wait and not path.exists():
        return Source(path, {})
    if not path.is_dir():
        raise refusal(path, RUN)
    source = Source(path, _read_summary(path, notes))
    places = [path] if RunDirectory(path).metrics.is_file() else sorted(path.iterdir())
    directories = [place for place in places if RunDirectory(place).metrics.is_file()]
    rows = [str(row["name"]) for row in objects(source.summary.get("table"), "rows") if "name" in row]
    order = {_plain(name): i for i, name in enumerate(rows)}
    directories.sort(key=lambda child: order.get(_plain(child.name), len(order)))
    source.runs = [run for run in (_read_run(child, rows, notes) for child in directories) if run is not None]
    if not source.runs and not rows and not wait:
        if not directories and kind_of(path) not in ("a run", "an unfinished run", "a folder of runs"):
            raise refusal(path, RUN)
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
    stages = summary.get("stages")
    entries = stages if isinstance(stages, dict) else {}
    lengths: dict[str, int] = {}  # how many steps each stage took, in the order of training
    for record in [*metrics, *probes]:
        stage = record["stage"]
        entry = entries.get(stage)  # the last step of a stage need not have been logged
        steps = int(finite(entry.get("steps")) or 0) if isinstance(entry, dict) else 0
        lengths[stage] = max(lengths.get(stage, steps), record["step"])
    starts: dict[str, int] = {}
    for stage in lengths:
        starts[stage] = sum(lengths[before] for before in starts)
    histograms, broken_histograms = read_histograms(metrics, starts)
    reliability, broken_reliability = read_reliability([r for r in probes if r["group"] == "chosen"])
    # the comparison table's name for this directory (``cw_dpo`` is CW-DPO), else its own title, else its name
    titled = next((row for row in rows if _plain(row) == _plain(path.name)), None)
    run = Run(
        name=titled or str(summary.get("title") or path.name),
        path=path,
        summary=summary,
        stages=starts,
        num_steps=sum(lengths.values()),
        metrics={key: curve for (_, key), curve in _curves(metrics, starts).items()},
        probes=_curves(probes, starts),
        histograms=histograms,
        reliability=reliability,
        num_probed=max((int(finite(r.get("n")) or 0) for r in probes if r["group"] == "chosen"), default=0),
        epoch=next(((r["step"], epoch) for r in reversed(metrics) if (epoch := finite(r.get("epoch")))), None),
    )
    named = {**run.metrics, **{f"{group} {key}": curve for (group, key), curve in run.probes.items()}}
    gaps = [f"{key} ({curve.num_broken})" for key, curve in sorted(named.items()) if curve.num_broken]
    if gaps:
        notes.append(f"{run.name}: readings that are not finite numbers leave a gap in the curve: {', '.join(gaps)}.")
    for key, count in ((COOLING_HISTOGRAM, broken_histograms), (_RELIABILITY, broken_reliability)):
        if count:
            notes.append(f"{run.name}: {key} could not be read in {counted(count, 'line')}.")
    return run


def _read_placed(path: Path, notes: list[str]) -> list[Record]:
    """The lines that have a step, sorted by stage and step; of a repeated step, the last value of each key."""
    found = read_jsonl(path)
    if found.skipped:
        notes.append(f"{_short(path)}: {counted(found.skipped, 'line')} could not be read, and the others are shown.")
    merged: dict[tuple[str, str, int], Record] = {}
    lost = 0
    for record in found.objects:
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
            if key not in _PLACE and not isinstance(value, list):  # a histogram is not a curve
                curve = points.setdefault((record["group"], key), {})
                curve.setdefault(record["stage"], []).append((x, finite(value)))
    return {
        place: Series(tuple(Segment(stage, tuple(found)) for stage, found in stages.items()))
        for place, stages in points.items()
    }


def _read_summary(path: Path, notes: list[str]) -> Record:
    file = RunDirectory(path).summary
    if not file.is_file():
        return {}
    try:
        summary = json.loads(read_object(file))
        if isinstance(summary, dict):
            return summary
        notes.append(f"{_short(file)} is not a JSON object and was left out.")
    except (ValueError, RecursionError) as error:
        notes.append(f"{_short(file)} is not readable JSON ({error}) and was left out.")
    return {}


def _bin(entry: object) -> Bin | None:
    found = numbers(entry)
    if found is None or len(found) != 3 or found[0] < 0 or not all(0 <= share <= 1 for share in found[1:]):
        return None
    return Bin(*found)


def _short(path: Path) -> str:
    """File and directory alone: pages are passed on, and the full path is private."""
    return f"{path.parent.name}/{path.name}"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _parent(run: Run, runs: Sequence[Run]) -> tuple[Run, str] | None:
    model = run.summary.get("model")
    start = Path(model).parts[-2:] if isinstance(model, str) else ()
    for other in runs:
        for stage in other.stages:
            if other is not run and other.path.parent == run.path.parent and start == (other.path.name, stage):
                return other, stage
    return None


def _begin(run: Run, parents: Mapping[Path, tuple[Run, str]], most: int) -> int:
    """The step at which a run begins; ``most`` ends a circle of runs that each claim to start from the next."""
    if run.path not in parents or most == 0:
        return 0
    parent, stage = parents[run.path]
    later = [start for start in parent.stages.values() if start > parent.stages[stage]]
    return _begin(parent, parents, most - 1) + min(later, default=parent.num_steps)


def _shifted(run: Run, by: int) -> Run:
    def moved(series: Series) -> Series:
        return Series(tuple(Segment(s.stage, tuple((x + by, y) for x, y in s.points)) for s in series.segments))

    return replace(
        run,
        stages={stage: start + by for stage, start in run.stages.items()},
        num_steps=run.num_steps + by,
        metrics={key: moved(series) for key, series in run.metrics.items()},
        probes={key: moved(series) for key, series in run.probes.items()},
        histograms=[replace(h, begin=h.begin + by, end=h.end + by) for h in run.histograms],
    )
