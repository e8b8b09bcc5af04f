"""Which curves the report shows, each with what it means in plain words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup, escape

from cwdpo.records import PROBE_GROUPS
from cwdpo.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Frame,
    Line,
    Mark,
    Segment,
    Series,
    axes,
    chart,
    num_outside,
    value_range,
)
from cwdpo.report.runs import NUM_BINS, Histogram, Reliability, Run, counted, first_and_last, joined_histograms


@dataclass(frozen=True)
class Measure:
    """A curve to draw: where it stands in the records and what it means."""

    key: str
    title: str
    meaning: str
    range: tuple[float, float] | None = None
    """Axis to use as long as every reading lies within it."""

    band: tuple[str, str] | None = None


METRICS = (
    Measure("loss", "Loss", "Training loss. Each stage has its own loss: compare within a stage."),
    Measure("rewards/margins", "Reward margin", "Reward of the chosen answer less that of the rejected one."),
    Measure("rewards/chosen", "Reward of chosen answers", "beta x change of log-prob since the stage began."),
    Measure("rewards/rejected", "Reward of rejected answers", "beta x change of log-prob; mind the axis."),
    Measure("logps_mean/chosen", "Log-prob of chosen answers", "Nats per token; nearer 0 is likelier."),
    Measure("logps_mean/rejected", "Log-prob of rejected answers", "Nats per token; mind the axis."),
    Measure(
        "cooling/mean",
        "Cooling weight",
        "How hard a rejected answer pushes: 1 as in DPO, 0 not at all. Mean, and where the middle 80 % lie.",
        range=(0.0, 1.0),
        band=("cooling/p10", "cooling/p90"),
    ),
    Measure("rewards/accuracies", "Pairs ranked rightly", "Share of pairs with a positive margin.", range=(0.0, 1.0)),
    Measure("grad_norm", "Gradient norm", "Length of the gradient before clipping."),
    Measure("entropy", "Entropy", "Nats per token: how undecided the model is about the next token."),
)

CHOSEN_PROBES = (
    Measure("entropy", "Entropy on chosen answers", "Nats per token on held-out chosen answers."),
    Measure("top1", "Top-1 accuracy", "Share of tokens where the likeliest is the right one.", range=(0.0, 1.0)),
    Measure("argmax_mass", "Mass on the likeliest token", "Mean probability of the likeliest token.", range=(0.0, 1.0)),
    Measure("ece", "Calibration error (ECE)", "Gap between confidence and accuracy, by token; 0 is calibrated."),
    Measure("tv", "Drift: total variation", "Share of the probability that moved since the stage began."),
    Measure("js", "Drift: Jensen-Shannon", "Nats, at most 0.69; the distance to the stage's start, by token."),
    Measure(
        "moved_to_argmax",
        "Drift: moved to the argmax",
        "Share of what moved that went to what was likeliest at the start; read it beside the chosen log-prob.",
        range=(0.0, 1.0),
    ),
)

_GROUPS = {
    "chosen": "The preferred answer; it should not fall",
    "rejected": "The rejected answer",
    "gentle": "The answer with one small error",
    "longer": "A longer paraphrase of the preferred answer",
    "shorter": "A shorter paraphrase of the preferred answer",
    "greedy": "What the model said when the stage began",
    "on_policy": "The same, sampled: what it would say by chance",
    "shuffled": "The preferred answer's words shuffled",
    "other_answer": "Another row's preferred answer",
    "other_image": "The preferred answer under another picture",
    "blank": "The preferred answer under a grey picture",
}


@dataclass(frozen=True)
class Panel:
    """One drawn chart and the words under it."""

    title: str
    meaning: str
    svg: Markup
    ends: Sequence[tuple[int, str, str]]
    """(rank, run, where its curve ended)."""

    note: str


def metric_panels(runs: Sequence[Run]) -> list[Panel]:
    """Charts of ``metrics.jsonl``; a metric that no run logged has none."""
    return _panels(runs, METRICS, lambda run, key: run.metrics.get(key))


def level_panels(runs: Sequence[Run]) -> list[Panel]:
    """Charts of ``probes.jsonl``: how likely each group's answers are, with the middle 80 % of them."""
    measures = [
        Measure(
            group,
            group_title(group),
            f"{_GROUPS.get(group, 'Log-prob of these answers')}. Nats per token.",
            band=(f"{group} p10", f"{group} p90"),
        )
        for group in probe_groups(runs)
    ]

    def find(run: Run, key: str) -> Series | None:
        for end in (" p10", " p90"):
            if key.endswith(end):
                return run.probes.get((key.removesuffix(end), end.strip()))
        return run.probes.get((key, "mean_logprob"))

    return _panels(runs, measures, find)


def change_panels(runs: Sequence[Run]) -> list[Panel]:
    """How far each group moved since its stage began."""
    measures = [
        Measure(group, f"{group_title(group)}: change", "Since the stage began, nats per token.")
        for group in probe_groups(runs)
    ]
    return _panels(runs, measures, lambda run, group: run.probes.get((group, "delta")))


def prediction_panels(runs: Sequence[Run]) -> list[Panel]:
    """How the chosen answers' tokens were predicted: certainty, calibration, and drift from the stage's start."""
    return _panels(runs, CHOSEN_PROBES, lambda run, key: run.probes.get(("chosen", key)))


def probe_groups(runs: Sequence[Run]) -> list[str]:
    """Groups that any run measured, in the order of a reading's lines, then those that we do not know."""
    found = dict.fromkeys(group for run in runs for group, _ in run.probes)
    return [group for group in PROBE_GROUPS if group in found] + [g for g in found if g not in PROBE_GROUPS]


def number(value: float) -> str:
    """Three significant digits.

    Example:
        >>> number(-0.12345), number(1234.5), number(0.0)
        ('-0.123', '1.23e+03', '0')
    """
    return f"{value or 0.0:.3g}"


def _panels(runs: Sequence[Run], measures: Sequence[Measure], find: Callable[[Run, str], Series | None]) -> list[Panel]:
    panels = []
    for measure in measures:
        lines = _lines(runs, measure, find)
        span = value_range(lines, measure.range)
        if span is not None:
            panels.append(_panel(measure, lines, span, runs))
    return panels


def _lines(runs: Sequence[Run], measure: Measure, find: Callable[[Run, str], Series | None]) -> list[Line]:
    lines = []
    for rank, run in enumerate(runs):
        series = find(run, measure.key)
        if series is None or not series.values:
            continue
        edges = [find(run, key) for key in measure.band or ()]
        band = (edges[0], edges[1]) if len(edges) == 2 and edges[0] and edges[1] else None
        lines.append(Line(run.name, rank, series, band))
    return lines


def _panel(measure: Measure, lines: Sequence[Line], span: tuple[float, float], runs: Sequence[Run]) -> Panel:
    ends = [(line.rank, line.name, number(end)) for line in lines if (end := line.series.end) is not None]
    steps = [x for line in lines for segment in line.series.segments for x, _ in segment.points]
    outside = num_outside(lines, span)
    picture = chart(
        lines,
        _marks([runs[line.rank] for line in lines], [line.rank for line in lines], min(steps)),
        x=(min(steps), max(steps)),
        y=span,
        label=f"{measure.title} over steps. Ends: " + ", ".join(f"{name} {end}" for _, name, end in ends) + ".",
    )
    note = f"Outside the picture, drawn at its edge: {counted(outside, 'reading')}." if outside else ""
    return Panel(measure.title, measure.meaning, picture, ends, note)


def _marks(runs: Sequence[Run], ranks: Sequence[int], first: float) -> list[Mark]:
    """Where stages begin. A boundary that all runs share is one mark; one of a single run has its colour."""
    places: dict[tuple[str, int], list[int]] = {}
    for rank, run in zip(ranks, runs, strict=True):
        for stage, start in list(run.stages.items())[1:]:
            if start >= first - 1:
                places.setdefault((stage, start), []).append(rank)
    return [
        Mark(float(start), stage_label(stage), None if len(found) > 1 or len(runs) == 1 else found[0])
        for (stage, start), found in places.items()
    ]


def group_title(group: str) -> str:
    """A probe group's name as people write it."""
    return group.replace("_", " ").capitalize()


def stage_label(stage: str) -> str:
    """``stage2`` as people write it.

    Example:
        >>> stage_label("stage2"), stage_label("warm_up")
        ('stage 2', 'warm up')
    """
    return f"stage {stage[5:]}" if stage.startswith("stage") and stage[5:].isdigit() else stage.replace("_", " ")


SHADES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Shares at which the next shade begins; there is one more shade below the first, and none at all for no negative."""

_MOST_COLUMNS = 80
_EDGE = 0.1
"""The bins of least and of most weight that the words under a map speak of."""


@dataclass(frozen=True)
class HeatMap:
    """A run's map and the words under it."""

    rank: int
    name: str
    svg: Markup
    words: str


def heat_maps(runs: Sequence[Run]) -> list[HeatMap]:
    """One map a run that counted its cooling weights, all over the same steps."""
    shown = [(rank, run) for rank, run in enumerate(runs) if run.histograms]
    if not shown:
        return []
    steps = (
        min(run.histograms[0].begin for _, run in shown),
        max(run.histograms[-1].end for _, run in shown),
    )
    return [_map(rank, run, Frame(steps, (0.0, 1.0))) for rank, run in shown]


def shade(share: float) -> int:
    """Class of a share: 0 for none at all, then up to 8.

    Example:
        >>> [shade(share) for share in (0.0, 0.001, 0.02, 0.1, 1.0)]
        [0, 1, 2, 4, 8]
    """
    return 0 if share <= 0 else 1 + sum(share >= least for least in SHADES)


def shade_labels() -> list[tuple[int, str]]:
    """Class and meaning of every shade, for the legend."""
    percent = [f"{least:.0%}" for least in SHADES]
    between = [f"{low[:-1]} to {high}" for low, high in pairwise(percent)]
    return list(enumerate([f"under {percent[0]}", *between, f"{percent[-1]} and more"], start=1))


def _map(rank: int, run: Run, frame: Frame) -> HeatMap:
    columns = joined_histograms(run.histograms, most=_MOST_COLUMNS)
    words = _heat_words(columns[0], columns[-1])
    label = escape(f"Cooling weights of {run.name} over steps. {words}")
    svg = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">', *axes(frame)]
    svg += [*_cells(columns, frame), *_hints(columns, frame), "</svg>"]
    return HeatMap(rank, run.name, Markup("".join(svg)), words)


def _cells(columns: Sequence[Histogram], frame: Frame) -> Iterator[str]:
    """One path a shade, so that a long run's map stays small."""
    paths: dict[int, list[str]] = {}
    for column in columns:
        left, right = frame.left(column.begin), frame.left(column.end)
        for i, share in enumerate(column.shares):
            top, bottom = frame.top((i + 1) / NUM_BINS), frame.top(i / NUM_BINS)
            paths.setdefault(shade(share), []).append(f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z")
    for level, parts in sorted(paths.items()):
        if level:
            yield f'<path class="w{level}" d="{"".join(parts)}"/>'


def _hints(columns: Sequence[Histogram], frame: Frame) -> Iterator[str]:
    """What a pointer resting on a column reads: its steps and the weights that have negatives."""
    for column in columns:
        left, right = frame.left(column.begin), frame.left(column.end)
        told = [f"{i / NUM_BINS:.1f}: {share:.0%}" for i, share in enumerate(column.shares) if share >= 0.005]
        text = f"Steps {column.begin:.0f} to {column.end:.0f}, by w_c from\n" + "\n".join(reversed(told))
        box = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BOTTOM - TOP}"'
        yield f'<rect class="hint" {box}><title>{text}</title></rect>'


def _heat_words(first: Histogram, last: Histogram) -> str:
    low, high = (f"{first.shares[i]:.0%} at first, {last.shares[i]:.0%} at last" for i in (0, -1))
    return f"w_c under {_EDGE}: {low}. Over {1 - _EDGE}: {high}."


_BOTTOM = TOP + RIGHT - LEFT  # a square
_LARGEST, _SMALLEST = 26.0, 2.0
"""Radius of a dot that has all tokens, and the least radius that can be seen."""


@dataclass(frozen=True)
class Diagram:
    """A run's diagram and its calibration error in words."""

    rank: int
    name: str
    svg: Markup
    words: str


def diagrams(runs: Sequence[Run]) -> list[Diagram]:
    """One diagram a run whose probes measured reliability: the last stage's first and last reading."""
    return [_diagram(rank, run) for rank, run in enumerate(runs) if run.reliability]


def radius(n: float, total: float) -> float:
    """Of a bin's dot: its area is the bin's share of the tokens.

    Example:
        >>> radius(25, 100)
        13.0
    """
    return max(_LARGEST * math.sqrt(n / total), _SMALLEST)


def _diagram(rank: int, run: Run) -> Diagram:
    readings = first_and_last(run.reliability)
    words = _ece_words(readings)
    frame = Frame((0.0, 1.0), (0.0, 1.0), bottom=_BOTTOM)
    label = escape(f"Accuracy over confidence of {run.name}. {words}")
    svg = [f'<svg class="chart" viewBox="0 0 {WIDTH} {_BOTTOM + 28}" role="img" aria-label="{label}">']
    svg += [*axes(frame, whole=False), f'<path class="mark all" d="M{LEFT} {_BOTTOM}L{RIGHT} {TOP}"/>']
    for kind, reading in zip(("first", "last")[-len(readings) :], readings, strict=True):
        svg += _dots(reading, kind, frame)
    return Diagram(rank, run.name, Markup("".join([*svg, "</svg>"])), words)


def _dots(reading: Reliability, kind: str, frame: Frame) -> Iterator[str]:
    for one in reading.bins:
        place = f'cx="{frame.left(one.confidence):.1f}" cy="{frame.top(one.accuracy):.1f}"'
        text = f"Step {reading.step}: {one.n:.0f} tokens, confidence {one.confidence:.2f}, right {one.accuracy:.2f}"
        yield f'<circle class="{kind}" {place} r="{radius(one.n, reading.n):.1f}"><title>{text}</title></circle>'


def _ece_words(readings: Sequence[Reliability]) -> str:
    at = [f"{reading.ece:.3f} at step {reading.step}" for reading in readings]
    stage = stage_label(readings[-1].stage).capitalize()
    return f"{stage}: ECE {', '.join(at)} ({readings[-1].n:.0f} tokens)."


def aligned(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Put runs that start from another's stage after it.

    A run says its start in the ``model`` of its summary. Only runs that lie beside each other are matched, by the names
    of directory and stage, so that a tree of runs can be moved.

    Returns:
        The runs, with steps counted from the first ancestor among them, and a sentence on each run that was moved.
    """
    parents = {run.path: parent for run in runs if (parent := _parent(run, runs))}
    moved, told = [], []
    for run in runs:
        begin = _begin(run, parents, len(runs))
        moved.append(_shifted(run, begin) if begin else run)
        if begin:
            origin, stage = parents[run.path]
            told.append(f"{run.name} continues {origin.name}'s {stage_label(stage)} from step {begin}.")
    return moved, told


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
