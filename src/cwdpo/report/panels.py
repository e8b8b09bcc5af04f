"""What the report draws of a run, each with what it means in plain words."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from cwdpo.records import HISTOGRAM_BINS, PROBE_GROUPS, MetricName, ProbeMeasure
from cwdpo.report.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Frame,
    Line,
    Mark,
    Series,
    axes,
    chart,
    num_outside,
    svg_of,
    value_range,
)
from cwdpo.report.runs import Bin, Histogram, Run, counted, first_and_last, joined_histograms, stage_label


@dataclass(frozen=True)
class Measure:
    """A curve to draw: where it stands in the records and what it means."""

    key: MetricName | ProbeMeasure
    title: str
    meaning: str
    range: tuple[float, float] | None = None
    """Axis to use as long as every reading lies within it."""

    band: tuple[MetricName, MetricName] | tuple[ProbeMeasure, ProbeMeasure] | None = None
    """Keys of the curves that bound a band around it."""

    group: str | None = None
    """Of answers that probes measure; None for a metric."""

    @property
    def unit(self) -> str:
        """Of the y axis; empty for what has none."""
        return _UNITS.get(self.key, "")

    def of(self, run: Run, key: MetricName | ProbeMeasure | None = None) -> Series | None:
        """A run's curve, or the one under another key; None where it did not log it."""
        key = key or self.key
        return run.metrics.get(key) if self.group is None else run.probes.get((self.group, key))


_UNITS: Mapping[str, str] = {
    **dict.fromkeys(("loss", "entropy", "js"), "nats"),
    **dict.fromkeys(("logps_mean/chosen", "logps_mean/rejected", "mean_logprob", "delta"), "nats/token"),
    **dict.fromkeys(("rewards/margins", "rewards/chosen", "rewards/rejected"), "β·nats"),
    **dict.fromkeys(("rewards/accuracies", "top1", "argmax_mass", "ece", "tv", "moved_to_argmax"), "share"),
    "cooling/mean": "weight",
}

METRICS = (
    Measure("loss", "Loss", "Training loss. Each stage has its own loss: compare within a stage."),
    Measure("rewards/margins", "Reward margin", "Reward of the chosen answer minus that of the rejected one."),
    Measure("rewards/chosen", "Reward of chosen answers", "beta x change of log-prob since the stage began."),
    Measure("rewards/rejected", "Reward of rejected answers", "beta x change of log-prob. Note the scale."),
    Measure("logps_mean/chosen", "Log-prob of chosen answers", "Nats per token; closer to 0 is more likely."),
    Measure("logps_mean/rejected", "Log-prob of rejected answers", "Nats per token. Note the scale."),
    Measure(
        "cooling/mean",
        "Cooling weight",
        "w_c: how hard a rejected answer is pushed down, 1 as in DPO, 0 not at all. Mean, and the middle 80 %.",
        (0.0, 1.0),
        ("cooling/p10", "cooling/p90"),
    ),
    Measure("rewards/accuracies", "Reward accuracy", "Share of pairs with a positive reward margin.", (0.0, 1.0)),
    Measure("grad_norm", "Gradient norm", "Length of the gradient before clipping."),
    Measure("entropy", "Entropy", "Nats per token: how undecided the model is about the next token."),
)

CHOSEN_PROBES = [
    replace(measure, group="chosen")
    for measure in (
        Measure("entropy", "Entropy on chosen answers", "Nats per token on held-out chosen answers."),
        Measure(
            "top1", "Top-1 accuracy", "Share of tokens for which the most likely token is the right one.", (0.0, 1.0)
        ),
        Measure("argmax_mass", "Argmax mass", "Mean probability of the most likely token.", (0.0, 1.0)),
        Measure("ece", "Calibration error (ECE)", "Gap between confidence and accuracy, by token; 0 is calibrated."),
        Measure("tv", "Drift: total variation (TV)", "Share of the probability that moved since the stage began."),
        Measure(
            "js", "Drift: Jensen-Shannon", "Nats, at most 0.69: distance to the model at the stage's start, by token."
        ),
        Measure(
            "moved_to_argmax",
            "Drift: moved to the argmax",
            "Share of what moved that went to the token that was most likely at the start; see also the "
            "chosen log-prob.",
            (0.0, 1.0),
        ),
    )
]

_GROUPS: Mapping[str, str] = {
    "chosen": "The chosen answer; it should not fall",
    "rejected": "The rejected answer",
    "gentle": "The answer with one small error",
    "longer": "A longer paraphrase of the chosen answer",
    "shorter": "A shorter paraphrase of the chosen answer",
    "greedy": "The model's greedy answer when the stage began",
    "on_policy": "An answer sampled from the model when the stage began",
    "shuffled": "The chosen answer's words, shuffled",
    "other_answer": "Another row's chosen answer",
    "other_image": "The chosen answer under another image",
    "blank": "The chosen answer under a grey image",
}


def levels(runs: Sequence[Run]) -> list[Measure]:
    """How likely each probe group's answers are, with the middle 80 % of them."""
    return [
        Measure(
            "mean_logprob",
            group_title(group),
            f"{_GROUPS.get(group, 'Log-prob of these answers')}. Nats per token.",
            band=("p10", "p90"),
            group=group,
        )
        for group in probe_groups(runs)
    ]


def changes(runs: Sequence[Run]) -> list[Measure]:
    """How far each probe group moved since its stage began."""
    return [
        Measure("delta", f"{group_title(group)}: change", "Since the stage began, nats per token.", group=group)
        for group in probe_groups(runs)
    ]


def probe_groups(runs: Sequence[Run]) -> list[str]:
    """Groups that any run measured, in the order of a reading's lines, then those that we do not know."""
    found = dict.fromkeys(group for run in runs for group, _ in run.probes)
    return [group for group in PROBE_GROUPS if group in found] + [g for g in found if g not in PROBE_GROUPS]


def group_title(group: str) -> str:
    """A probe group's name as people write it."""
    return group.replace("_", " ").capitalize()


def number(value: float) -> str:
    """Three significant digits.

    Example:
        >>> number(-0.12345), number(1234.5), number(0.0)
        ('-0.123', '1.23e+03', '0')
    """
    return f"{value or 0.0:.3g}"


@dataclass(frozen=True)
class Panel:
    """One drawn chart and the words under it; ``ends`` has (rank, run, where its curve ended)."""

    title: str
    meaning: str
    svg: Markup
    ends: Sequence[tuple[int, str, str]]
    note: str


def panels(runs: Sequence[Run], measures: Iterable[Measure]) -> list[Panel]:
    """A chart of every measure that any run logged."""
    drawn = [(measure, _lines(runs, measure)) for measure in measures]
    spans = [value_range(lines, measure.range) for measure, lines in drawn]
    return [_panel(measure, lines, span, runs) for (measure, lines), span in zip(drawn, spans, strict=True) if span]


def _lines(runs: Sequence[Run], measure: Measure) -> list[Line]:
    lines = []
    for rank, run in enumerate(runs):
        series = measure.of(run)
        if series is None or not series.values:
            continue
        edges = [edge for key in measure.band or () if (edge := measure.of(run, key)) is not None]
        lines.append(Line(run.name, rank, series, (edges[0], edges[1]) if len(edges) == 2 else None))
    return lines


def _panel(measure: Measure, lines: Sequence[Line], span: tuple[float, float], runs: Sequence[Run]) -> Panel:
    ends = [(line.rank, line.name, number(end)) for line in lines if (end := line.series.end) is not None]
    steps = [x for line in lines for segment in line.series.segments for x, _ in segment.points]
    outside = num_outside(lines, span)
    picture = chart(
        lines,
        _marks([(line.rank, runs[line.rank]) for line in lines], min(steps)),
        x=(min(steps), max(steps)),
        y=span,
        unit=measure.unit,
        label=f"{measure.title} over steps. Ends: " + ", ".join(f"{name} {end}" for _, name, end in ends) + ".",
    )
    note = f"Outside the picture, drawn at its edge: {counted(outside, 'reading')}." if outside else ""
    return Panel(measure.title, measure.meaning, picture, ends, note)


def _marks(runs: Sequence[tuple[int, Run]], first: float) -> list[Mark]:
    """Where stages begin. A boundary that all runs share is one mark; one of a single run has its colour."""
    places: dict[tuple[str, int], list[int]] = {}
    for rank, run in runs:
        for stage, start in list(run.stages.items())[1:]:
            if start >= first - 1:
                places.setdefault((stage, start), []).append(rank)
    return [
        Mark(float(start), stage_label(stage), None if len(found) > 1 or len(runs) == 1 else found[0])
        for (stage, start), found in places.items()
    ]


@dataclass(frozen=True)
class RunPicture:
    """A picture of one run and the words under it."""

    rank: int
    name: str
    svg: Markup
    words: str


SHADES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Shares at which the next shade begins; there is one more shade below the first, and none at all for no negative."""

_MOST_COLUMNS = 80
_EDGE = 0.1
"""The words under a heat map say how many weights are within this of 0 and of 1."""


def heat_maps(runs: Sequence[Run]) -> list[RunPicture]:
    """The cooling weights of each run that counted them, all over the same steps."""
    shown = [(rank, run) for rank, run in enumerate(runs) if run.histograms]
    if not shown:
        return []
    steps = min(run.histograms[0].begin for _, run in shown), max(run.histograms[-1].end for _, run in shown)
    frame = Frame(steps, (0.0, 1.0))
    pictures = []
    for rank, run in shown:
        columns = joined_histograms(run.histograms, most=_MOST_COLUMNS)
        low, high = (f"{columns[0].shares[i]:.0%} at first, {columns[-1].shares[i]:.0%} at last" for i in (0, -1))
        words = f"w_c under {_EDGE}: {low}. Over {1 - _EDGE}: {high}."
        parts = [*axes(frame, "training step"), *_cells(columns, frame)]
        svg = svg_of(parts, label=f"Cooling weights of {run.name} over steps. {words}")
        pictures.append(RunPicture(rank, run.name, svg, words))
    return pictures


def share_shade(share: float) -> int:
    """Class of a share of negatives: 0 for none at all, then up to 8.

    Example:
        >>> [share_shade(share) for share in (0.0, 0.001, 0.02, 0.1, 1.0)]
        [0, 1, 2, 4, 8]
    """
    return 0 if share <= 0 else 1 + sum(share >= least for least in SHADES)


def share_labels() -> list[tuple[int, str]]:
    """Class and meaning of every shade of a heat map, for the legend."""
    percent = [f"{least:.0%}" for least in SHADES]
    between = [f"{low[:-1]} to {high}" for low, high in pairwise(percent)]
    return list(enumerate([f"under {percent[0]}", *between, f"{percent[-1]} and more"], start=1))


def _cells(columns: Sequence[Histogram], frame: Frame) -> list[str]:
    """One path a shade, so that a long run's map stays small, and a hint for the pointer that rests on a column."""
    paths: dict[int, str] = {}
    hints = []
    for column in columns:
        left, right = frame.across(column.begin), frame.across(column.end)
        for i, share in enumerate(column.shares):
            top, bottom = frame.down((i + 1) / HISTOGRAM_BINS), frame.down(i / HISTOGRAM_BINS)
            cell = f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"
            paths[share_shade(share)] = paths.get(share_shade(share), "") + cell
        shown = [f"{i / HISTOGRAM_BINS:.1f}: {share:.0%}" for i, share in enumerate(column.shares) if share >= 0.005]
        text = f"Steps {column.begin:.0f} to {column.end:.0f}, by w_c from\n" + "\n".join(reversed(shown))
        box = f'x="{left:.1f}" y="{TOP:g}" width="{right - left:.1f}" height="{BOTTOM - TOP:g}"'
        hints.append(f'<rect class="hint" {box}><title>{text}</title></rect>')
    return [*(f'<path class="w{level}" d="{cells}"/>' for level, cells in sorted(paths.items()) if level), *hints]


_LARGEST, _SMALLEST = 26.0, 2.0
"""Radius of a dot that has all tokens, and the smallest radius that can be seen."""


def reliability_diagrams(runs: Sequence[Run]) -> list[RunPicture]:
    """Of each run whose probes measured reliability, the first and last reading of its last stage."""
    return [_reliability_diagram(rank, run) for rank, run in enumerate(runs) if run.reliability]


def _reliability_diagram(rank: int, run: Run) -> RunPicture:
    readings = first_and_last(run.reliability)
    at = [f"{reading.ece:.3f} at step {reading.step}" for reading in readings]
    stage = stage_label(readings[-1].stage).capitalize()
    words = f"{stage}: ECE {', '.join(at)} ({readings[-1].n:.0f} tokens)."
    kinds = ("first", "last")[-len(readings) :]
    drawn = [(kind, f"Step {reading.step}", reading.bins) for kind, reading in zip(kinds, readings, strict=True)]
    return RunPicture(
        rank, run.name, reliability_picture(drawn, label=f"Accuracy over confidence of {run.name}. {words}"), words
    )


def reliability_picture(drawn: Sequence[tuple[str, str, Sequence[Bin]]], *, label: str) -> Markup:
    """Accuracy over confidence, a dot a bin; ``drawn`` has a class of the page, a name and the bins of each reading."""
    square = Frame((0.0, 1.0), (0.0, 1.0), bottom=TOP + RIGHT - LEFT)
    parts = [*axes(square, "confidence", whole=False)]
    parts.append(f'<path class="mark all" d="M{LEFT:g} {square.bottom:g}L{RIGHT:g} {TOP:g}"/>')
    for kind, name, bins in drawn:
        total = math.fsum(one.n for one in bins)
        for one in bins:
            place = f'cx="{square.across(one.confidence):.1f}" cy="{square.down(one.accuracy):.1f}"'
            text = f"{name}: {one.n:.0f} tokens, confidence {one.confidence:.2f}, right {one.accuracy:.2f}"
            radius = max(_LARGEST * math.sqrt(one.n / total), _SMALLEST)  # the area is the share of the tokens
            dot = f'<circle class="{kind}" {place} r="{radius:.1f}"><title>{text}</title></circle>'
            parts.append(dot)
    return svg_of(parts, label=label, height=square.bottom + 44)
