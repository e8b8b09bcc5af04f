"""Which curves the report shows, each with what it means in plain words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cwdpo.records.lines import PROBE_GROUPS
from cwdpo.report.runs import Run, counted
from cwdpo.report.series import Series
from cwdpo.report.svg import Line, Mark, chart, num_outside, value_range


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
