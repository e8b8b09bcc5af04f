"""What a run left behind: metric lines and probe lines as curves of each stage."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

from cwdpo.config.recipe import Stage2Config
from cwdpo.diagnosis.curves import Change, Curve, MissingReadingsError, joined
from cwdpo.diagnosis.thresholds import Thresholds
from cwdpo.errors import shortened
from cwdpo.records import METRIC_NAMES, MetricName, ProbeGroup, ProbeMeasure, Side, SignName

_METRICS = frozenset(METRIC_NAMES) - {"num_tokens", "skipped_steps", "logps_mean/gentle"} - {
    name for name in METRIC_NAMES if name.startswith("negatives/")
}  # fmt: skip
_HELD_OUT = frozenset(f"eval_{name}" for name in _METRICS)  # the Trainer's prefix for the evaluation rows
_PROBES: frozenset[ProbeMeasure] = frozenset(
    ["mean_logprob", "delta", "entropy", "top1", "argmax_mass", "ece", "tv", "js"]
)
_CALIBRATION_ERROR = "ece error"  # beside the measures, from the bins of a reading
_ABSURD = 1e30  # larger magnitudes are overflow by another name


@dataclass(frozen=True)
class Finding:
    """One named problem, the numbers that show it, and what to change."""

    name: SignName
    """``docs/diagnosis.md`` explains each."""

    evidence: str
    """Where and when, and the numbers with their units."""

    advice: str
    """What to change, by the names of the recipe."""

    stage: str | None = None
    step: int | None = None
    """The step at which it happened or began, or the last one that was looked at."""


@dataclass(frozen=True)
class StageHistory:
    """What one stage left behind."""

    name: str
    """``stage1``, ``stage2``, or ``run`` where a history knows no stages."""

    metrics: Mapping[str, Curve]
    probes: Mapping[tuple[str, str], Curve]
    """Curves by their name in ``metrics.jsonl``, and by answer group and name in ``probes.jsonl``."""

    broken: Mapping[str, tuple[int, ...]]
    """Metric -> the steps at which what was logged is not a finite number."""

    first_step: int
    last_step: int
    num_metrics: int
    num_probes: int
    """Lines of each kind; a probe reading has one line a group."""

    has_steps: bool
    """Whether lines have a step; else they are numbered as they come, and none is known to be the first step."""

    beta: float
    limits: Thresholds

    @property
    def prefers(self) -> bool:
        """Whether preferences were trained: a supervised stage logs no rewards."""
        rewards = any(name.startswith(("rewards/", "eval_rewards/")) for name in self.metrics)
        unnamed = self.name == "run" and ("logps/rejected" in self.metrics or not self.metrics)
        return self.name == "stage2" or rewards or unnamed

    def metric(self, name: MetricName) -> Curve:
        """A curve long enough to judge; where there is none, MissingReadingsError."""
        if curve := self.find_metric(name):
            return curve
        found, least = self.metrics.get(name, ()), self.limits.min_metric_readings
        raise MissingReadingsError(f"`{name}`, {least} readings or more ({len(found)} found)")

    def find_metric(self, name: MetricName) -> Curve | None:
        """The same, or None."""
        return _long_enough(self.metrics.get(name), self.limits.min_metric_readings)

    def find_probe(self, group: ProbeGroup, name: ProbeMeasure) -> Curve | None:
        """A curve of a probe group long enough to judge, or None."""
        return _long_enough(self.probes.get((group, name)), self.limits.min_probe_readings)

    @property
    def calibration_error(self) -> float | None:
        """Standard error of one reading of ``ece`` that the number of tokens gives; None where that is not logged."""
        errors = self.probes.get(("chosen", _CALIBRATION_ERROR))
        return None if errors is None else median(errors.values)

    def finding(self, name: SignName, said: str | None, advice: str, *, step: int | None = None) -> Finding | None:
        """A finding of this stage, whose evidence begins with stage and step; None where nothing is said."""
        if said is None:
            return None
        step = self.last_step if step is None else step
        where = f"step {step}" if self.name == "run" else f"{self.name}, step {step}"
        return Finding(name, f"{where}: {said}.", advice, None if self.name == "run" else self.name, step)


def stage_histories(
    readings: Iterable[object], *, beta: float | None = None, limits: Thresholds | None = None
) -> tuple[list[StageHistory], int]:
    """Sort readings into curves, in one pass: the stages as they appear, and how many items are not a reading.

    Arguments as in :func:`cwdpo.diagnosis.diagnose`. No reading is what is no object, or holds nothing that is known.
    """
    stages: dict[str, _Columns] = {}
    unreadable = sum(not (isinstance(reading, Mapping) and _take(reading, stages)) for reading in readings)
    beta, limits = Stage2Config.beta if beta is None else beta, limits or Thresholds()
    return [columns.history(name, beta, limits) for name, columns in stages.items()], unreadable


@dataclass(frozen=True)
class Movement:
    """A side's log-prob against its start."""

    curve: Curve
    """Nats per token, or nats an answer where ``per_token`` is False."""

    base: float | None
    """Value of the curve at the start where it is known without noise."""

    per_token: bool
    start_nll: float | None
    """NLL at the start, in the curve's unit; None where only rewards are there."""

    source: str
    """What the numbers come from, in words."""

    def change(self, sigmas: float) -> Change:
        return self.curve.change(sigmas, base=self.base)

    @property
    def unit(self) -> str:
        return "nats per token" if self.per_token else "nats per answer"


def movements(
    stage: StageHistory, side: Side, *, least: int | None = None, least_same: int | None = None
) -> list[Movement]:
    """Every account of a side's answers, most informative first: probes, held-out rows, training rows; at least one.

    ``least`` readings of training rows are needed, and ``least_same`` of rows that are the same each time; by default
    as many as of other metrics, and of other probes.
    """
    limits = stage.limits
    least = limits.min_metric_readings if least is None else least
    least_same = limits.min_probe_readings if least_same is None else least_same
    of_rows = _of_metrics(stage, side, "", least)
    there = [*same_answers(stage, side, least=least_same), *([] if of_rows is None else [of_rows])]
    if not there:
        raise MissingReadingsError(
            f"`rewards/{side}`, `logps_mean/{side}` or `logps/{side}`, {least} readings or more, "
            f"or `delta` of probe group `{side}`, {least_same} or more"
        )
    return there


def same_answers(stage: StageHistory, side: Side, *, least: int) -> list[Movement]:
    """The accounts whose answers are the same in each of their ``least`` readings or more: probes, held-out rows."""
    found = _of_probes(stage, side, least), _of_metrics(stage, side, "eval_", least)
    return [movement for movement in found if movement is not None]


def fall_that_counts(stage: StageHistory, chosen: Movement, rejected: Movement | None = None) -> float:
    """A fall that counts, in the unit of the movement; where the NLL is unknown, held against ``rejected`` answers."""
    limits = stage.limits
    share = limits.fall_share * (chosen.start_nll or 0.0)
    if chosen.start_nll is None and rejected is not None:
        share = limits.fall_of_rejected * abs(rejected.change(limits.sigmas).amount)
    least = max(share, limits.fall_least if chosen.per_token else limits.fall_answer)
    if len(chosen.curve) < limits.min_probe_readings:
        return least * limits.fall_two
    return least * (limits.fall_short if chosen.curve.is_short else 1)


def pairs_of_movements(
    stage: StageHistory, *, least: int | None = None, least_same: int | None = None
) -> Sequence[tuple[Movement, Movement]]:
    """The accounts that chosen and rejected answers share, in one unit; see :func:`movements`."""
    counts = {"least": least, "least_same": least_same}
    rejected = {movement.source: movement for movement in movements(stage, "rejected", **counts)}
    both = [(chosen, rejected.get(chosen.source)) for chosen in movements(stage, "chosen", **counts)]
    return [(mine, other) for mine, other in both if other is not None and other.per_token == mine.per_token]


def tokens(stage: StageHistory, side: Side, prefix: str = "") -> float | None:
    """Mean length of a side's answers, from sums and means of the same lines; None where either is not logged."""
    sums, means = stage.metrics.get(f"{prefix}logps/{side}"), stage.metrics.get(f"{prefix}logps_mean/{side}")
    if sums is None or means is None:
        return None
    mean_at = dict(zip(means.steps, means.values, strict=True))
    totals = zip(sums.steps, sums.values, strict=True)
    ratios = [total / mean_at[step] for step, total in totals if mean_at.get(step, 0.0) < 0 and total < 0]
    return median(ratios) if ratios else None


def _of_probes(stage: StageHistory, side: Side, least: int) -> Movement | None:
    delta, level = (_long_enough(stage.probes.get((side, name)), least) for name in ("delta", "mean_logprob"))
    start = level.values[0] - (delta.values[0] if delta else 0.0) if level else None
    curve = delta or level
    return Movement(curve, 0.0 if delta else None, True, _nll(start), "probes") if curve else None


def _of_metrics(stage: StageHistory, side: Side, prefix: str, least: int) -> Movement | None:
    rows = "held-out rows" if prefix else "training rows"
    rewards, sums, means = (
        _long_enough(stage.metrics.get(f"{prefix}{name}/{side}"), least) for name in ("rewards", "logps", "logps_mean")
    )
    length = tokens(stage, side, prefix)
    if rewards is not None:  # of the same answers twice, so what differs from batch to batch has cancelled
        scale = 1 / (stage.beta * (length or 1))
        ratio = Curve(rewards.steps, tuple(value * scale for value in rewards.values))
        base = 0.0 if abs(rewards.values[0]) / stage.beta <= stage.limits.start_near else None
        level = means if length else sums
        return Movement(ratio, base, bool(length), _nll(level.start if level else None), rows)
    curve = means or sums
    return Movement(curve, None, means is not None, _nll(curve.start), rows) if curve else None


def _nll(logprob: float | None) -> float | None:
    return None if logprob is None else max(0.0, -logprob)


def cooling_mode(stage: StageHistory) -> Literal["off", "constant", "on"]:
    """``off`` where the weight is 1 or never logged, ``constant`` where it is one number for all negatives."""
    mean, low, high = map(stage.metrics.get, ("cooling/mean", "cooling/p10", "cooling/p90"))
    if mean is None or min(mean.values) > 1 - 1e-6:
        return "off"
    spread = low is not None and high is not None and any(a != b for a, b in zip(low.values, high.values, strict=False))
    varies = max(mean.values) - min(mean.values) > 1e-6
    return "on" if spread or varies else "constant"


def hold_negatives_back(stage: StageHistory) -> str:
    """What to change so that negatives pull less."""
    mode = cooling_mode(stage)
    if mode == "on":
        return (
            "Raise `stage2.cooling.floor` so that easy negatives weigh less, or lower `stage2.cooling.temperature` "
            "so that the switch is sharper"
        )
    if mode == "constant":
        return "Take `stage2.cooling.constant` out: one weight for all negatives only delays it, cooling picks the easy"
    return "Cool the negatives: write `stage2.cooling: {floor: chosen - 2 tau}`"


def _long_enough(curve: Curve | None, least: int) -> Curve | None:
    return curve if curve is not None and len(curve) >= least else None


_Column: TypeAlias = dict[int, float | None]
"""Step -> value, None where it is not finite; a step that comes twice keeps its last value."""


@dataclass
class _Columns:
    """A stage while it is read."""

    metrics: dict[str, _Column] = field(default_factory=dict)
    probes: dict[tuple[str, str], _Column] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    metric_steps: set[int] = field(default_factory=set)
    num_probes: int = 0
    has_steps: bool = True
    last_step: int = -1

    def history(self, name: str, beta: float, limits: Thresholds) -> StageHistory:
        return StageHistory(
            name=name,
            metrics={key: curve for key, column in self.metrics.items() if len(curve := _curve(column))},
            probes={key: curve for key, column in self.probes.items() if len(curve := _curve(column))},
            broken={
                key: tuple(sorted(step for step, value in column.items() if value is None))
                for key, column in self.metrics.items()
                if None in column.values()
            },
            first_step=min(self.steps),
            last_step=max(self.steps),
            num_metrics=len(self.metric_steps),
            num_probes=self.num_probes,
            has_steps=self.has_steps,
            beta=beta,
            limits=limits,
        )


def _curve(column: _Column) -> Curve:
    return joined(sorted((step, value) for step, value in column.items() if value is not None))


def _take(reading: Mapping[object, object], stages: dict[str, _Columns]) -> bool:
    """Put one reading where it belongs; False where nothing in it is known."""
    group = reading.get("group")
    names = _METRICS | _HELD_OUT if group is None else _PROBES
    known = {str(name): _number(value) for name, value in reading.items() if name in names and _is_number(value)}
    if not known:
        return "train_runtime" in reading or "eval_runtime" in reading
    columns = stages.setdefault(shortened(str(reading.get("stage", "run"))), _Columns())
    given = _number(reading.get("step"))
    if given is None or given < 0:
        columns.has_steps = False
        step = columns.last_step + 1
    else:
        step = int(given)
    columns.last_step = step
    columns.steps.add(step)
    columns.num_probes += group is not None
    if group is None:
        columns.metric_steps.add(step)
    for name, value in known.items():
        if group is None:
            columns.metrics.setdefault(name, {})[step] = value
        else:
            columns.probes.setdefault((str(group), name), {})[step] = value
    if (error := calibration_error(reading.get("reliability"))) is not None:
        columns.probes.setdefault((str(group), _CALIBRATION_ERROR), {})[step] = error
    return True


def calibration_error(bins: object) -> float | None:
    """Standard error of ECE from its bins of ``(tokens, confidence, accuracy)``: each bin's accuracy is a share of so
    many tokens, taken to be independent. None where these are no such bins."""
    if not isinstance(bins, list | tuple) or not bins:
        return None
    tokens = variance = 0.0
    for entry in bins:
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            return None
        count, _, accuracy = map(_number, entry)
        if count is None or accuracy is None or not 0 <= accuracy <= 1 or count < 0:
            return None
        tokens += count
        variance += count * accuracy * (1 - accuracy)
    return math.sqrt(variance) / tokens if tokens else None


def _is_number(value: object) -> bool:
    """Whether a logger may have meant a number, if only a bad one: a run's files hold null where one was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: object) -> float | None:
    """The number, or None where it is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _ABSURD:
        return None
    return float(value)
