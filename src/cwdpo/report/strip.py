"""The first thing on the page: a card a run, with its status, its main numbers, and what the diagnosis found."""

import time
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import yaml

from cwdpo.records import STAGES, RunDirectory
from cwdpo.report.charts import Segment, Series, finite
from cwdpo.report.panels import number
from cwdpo.report.runs import Run, stage_label
from cwdpo.report.tables import Verdict, duration

Look: TypeAlias = Literal["bad", "good", "plain"]
_QUIET = 300.0
"""Seconds without a new line after which a run that has not finished is no longer said to be training."""


_LEAST = 1e-4
"""A change, reward or error that is smaller is as good as 0, and not written out."""


class Number(NamedTuple):
    """A number of a run, with its standard error where there is one."""

    label: str
    text: str


class Progress(NamedTuple):
    """Where a run stands that has not ended."""

    words: str = ""
    """Empty for a run that has ended."""

    stage: str = ""
    step: int = 0
    total: int | None = None
    age: int = 0
    """Seconds since its last line."""


class Card(NamedTuple):
    """What the strip says of one run."""

    rank: int
    name: str
    status: str
    numbers: Sequence[Number]
    badges: Sequence[tuple[Look, str]]
    progress: "Progress"
    """Where it stands, for a page that follows it."""


def cards(runs: Sequence[Run], verdicts: Sequence[Verdict]) -> list[Card]:
    """A card a run."""
    return [
        Card(rank, run.name, _status(run), _numbers(run), _badges(verdict), _progress(run))
        for rank, (run, verdict) in enumerate(zip(runs, verdicts, strict=True))
    ]


def _status(run: Run) -> str:
    seconds = finite(run.summary.get("wall_seconds"))
    if run.summary:
        return "Finished" + ("" if seconds is None else f" in {duration(seconds)}")
    directory = RunDirectory(run.path)
    done = [stage for stage in STAGES if directory.was_finished(stage)]
    if done and done[-1] == list(run.stages)[-1]:
        return "Finished"
    stage = f"{stage_label(list(run.stages)[-1])}, step {run.num_steps - list(run.stages.values())[-1]}"
    return f"Training: {stage}" if _age(run) < _QUIET else f"Not finished: {stage}"


def _numbers(run: Run) -> list[Number]:
    """Reward accuracy and margin of the last readings, and how the chosen answers moved; at most four."""
    found: list[Number] = []
    held_out = run.probes.get(("chosen", "delta"))
    chosen = held_out or run.metrics.get("rewards/chosen")
    if chosen is not None and chosen.values:
        label = "Chosen answers, change (nats/token)" if held_out else "Reward of chosen answers"
        found.append(Number(label, _with_error(chosen, sign=True)))
    for key, label in (("rewards/accuracies", "Reward accuracy"), ("rewards/margins", "Reward margin")):
        series = run.metrics.get(key)
        if series is not None and series.values:
            found.append(Number(label, _with_error(series, percent=key.endswith("accuracies"))))
    loss = run.metrics.get("loss")
    if loss is not None and loss.values:
        found.append(Number("Loss", _with_error(loss)))
    return found[:4]


def _with_error(series: Series, *, sign: bool = False, percent: bool = False) -> str:
    segment = next(segment for segment in reversed(series.segments) if segment.values)
    value, error = segment.end or 0.0, _end_error(segment)
    if percent:
        return f"{value:.1%}" + ("" if error is None else f" ± {100 * error:.1f}")
    text = f"{value:+.3g}" if sign else number(value)
    if 0 < abs(value) < _LEAST:
        text = "about 0"
    if error is None:
        return text
    return f"{text} ± {error:.2g}" if error >= _LEAST or not error else f"{text} ± under {_LEAST:g}"


def _end_error(segment: Segment) -> float | None:
    """Standard error of the end of a curve by its scatter; None where there are too few readings to know that."""
    return segment.end_error if len(segment.values) >= 8 else None


def _badges(verdict: Verdict) -> list[tuple[Look, str]]:
    found: list[tuple[Look, str]] = [("bad", title) for title in dict.fromkeys(p.title for p in verdict.findings)]
    if verdict.stopped:
        found.append(("bad", "Ended early"))
    if not found:
        first, _, _ = verdict.headline.rstrip(".").partition(":")
        found.append(("good" if verdict.found_nothing else "plain", first))
    unjudged = len({sign for sign, _, _ in verdict.missing})
    if unjudged and verdict.clear:
        found.append(("plain", f"{unjudged} not judged"))
    return found


def _progress(run: Run) -> Progress:
    if run.summary:
        return Progress()
    stage, begin = list(run.stages.items())[-1]
    step = run.num_steps - begin
    total = _steps_of(run, stage, step)
    words = f"{stage_label(stage)}, step {step}" + (f" of {total} ({step / total:.0%})" if total else "")
    return Progress(words, stage, step, total, round(_age(run)))


def _steps_of(run: Run, stage: str, step: int) -> int | None:
    """How long a stage will be: ``max_steps``, or what its epochs and the epoch of the last line come to."""
    try:
        recipe = yaml.safe_load(RunDirectory(run.path).recipe.read_text("utf-8"))
        settings = {**(recipe.get("trainer") or {}), **((recipe.get(stage) or {}).get("trainer") or {})}
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError):
        return None
    most, epochs = finite(settings.get("max_steps")), finite(settings.get("num_train_epochs", 3))
    if most is not None and most > 0:
        return max(step, int(most))
    if epochs is None or run.epoch is None or run.epoch[0] <= 0:
        return None
    at, epoch = run.epoch
    return max(step, round(at * epochs / epoch))


def _age(run: Run) -> float:
    """Seconds since the run's last line."""
    times = [f.stat().st_mtime for f in (RunDirectory(run.path).metrics, RunDirectory(run.path).probes) if f.is_file()]
    return time.time() - max(times, default=0.0)
