"""What a run left behind: metric lines and probe lines together, as curves of each stage, by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal, TypeAlias

from cwdpo.config.recipe import Stage2Config
from cwdpo.diagnosis.curves import Change, Curve, MissingReadingsError
from cwdpo.diagnosis.findings import Finding
from cwdpo.diagnosis.thresholds import Thresholds
from cwdpo.records import METRIC_NAMES, MetricName, ProbeGroup, ProbeMeasure, Side, SignName

_METRICS = frozenset(METRIC_NAMES) - {"num_tokens", "logps_mean/gentle"} - {
    name for name in METRIC_NAMES if name.startswith("negatives/")
}  # fmt: skip
_HELD_OUT = frozenset(f"eval_{name}" for name in _METRICS)  # the Trainer's prefix for the evaluation rows
_PROBES: frozenset[ProbeMeasure] = frozenset(
    ["mean_logprob", "delta", "entropy", "top1", "argmax_mass", "ece", "tv", "js"]
)
_ABSURD = 1e30  # larger magnitudes are overflow by another name


@dataclass(frozen=True)
class StageHistory:
    """What one stage left behind."""

    name: str
    """``stage1``, ``stage2``, or ``run`` where a history knows no stages."""

    metrics: Mapping[str, Curve]
    """Name in ``metrics.jsonl`` -> curve."""

    probes: Mapping[tuple[str, str], Curve]
    """(answer group, name in ``probes.jsonl``) -> curve."""

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
        """A curve long enough to judge.

        Raises:
            MissingReadingsError: it is not there, or too short.
        """
        return self.find_metric(name) or self._missing(
            f"`{name}`", self.metrics.get(name), self.limits.min_metric_readings
        )

    def find_metric(self, name: MetricName) -> Curve | None:
        """The same, or None."""
        return _long_enough(self.metrics.get(name), self.limits.min_metric_readings)

    def find_probe(self, group: ProbeGroup, name: ProbeMeasure) -> Curve | None:
        """A curve of a probe group long enough to judge, or None."""
        return _long_enough(self.probes.get((group, name)), self.limits.min_probe_readings)

    def finding(self, name: SignName, evidence: str, advice: str, *, step: int | None = None) -> Finding:
        """A finding of this stage; its evidence begins with stage and step."""
        step = self.last_step if step is None else step
        where = f"step {step}" if self.name == "run" else f"{self.name}, step {step}"
        return Finding(name, f"{where}: {evidence}.", advice, None if self.name == "run" else self.name, step)

    def _missing(self, what: str, found: Curve | None, least: int) -> Curve:
        raise MissingReadingsError(f"{what}, {least} readings or more ({len(found) if found is not None else 0} found)")


def _long_enough(curve: Curve | None, least: int) -> Curve | None:
    return curve if curve is not None and len(curve) >= least else None


@dataclass(frozen=True)
class History:
    """All stages of a run, in the order in which they appear."""

    stages: tuple[StageHistory, ...]
    num_unreadable: int
    """Items that are not a reading: not an object, or without anything that is known."""

    @classmethod
    def of(
        cls, readings: Iterable[object], *, beta: float | None = None, limits: Thresholds | None = None
    ) -> "History":
        """Sort readings into curves, in one pass.

        Args:
            readings: lines of ``metrics.jsonl`` and ``probes.jsonl`` in any mixture, or a TRL ``log_history``;
                those of one stage oldest first. What is not a reading is counted and left out.
            beta: of the preference loss; None takes the recipe's default.
            limits: None takes the defaults.
        """
        stages: dict[str, _Columns] = {}
        unreadable = sum(not (isinstance(reading, Mapping) and _take(reading, stages)) for reading in readings)
        beta, limits = Stage2Config.beta if beta is None else beta, limits or Thresholds()
        return cls(tuple(columns.history(name, beta, limits) for name, columns in stages.items()), unreadable)


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


def _take(reading: Mapping[object, object], stages: dict[str, _Columns]) -> bool:
    """Put one reading where it belongs; False where nothing in it is known."""
    group = reading.get("group")
    names = _METRICS | _HELD_OUT if group is None else _PROBES
    known = {str(name): _number(value) for name, value in reading.items() if name in names and _is_number(value)}
    if not known:
        return "train_runtime" in reading or "eval_runtime" in reading
    columns = stages.setdefault(str(reading.get("stage", "run")), _Columns())
    step = _step(reading.get("step"))
    if step is None:
        columns.has_steps = False
        step = columns.last_step + 1
    columns.last_step = step
    columns.steps.add(step)
    if group is None:
        columns.metric_steps.add(step)
        for name, value in known.items():
            columns.metrics.setdefault(name, {})[step] = value
    else:
        columns.num_probes += 1
        for name, value in known.items():
            columns.probes.setdefault((str(group), name), {})[step] = value
    return True


def _curve(column: _Column) -> Curve:
    points = sorted((step, value) for step, value in column.items() if value is not None)
    return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))


def _step(value: object) -> int | None:
    number = _number(value)
    return None if number is None or number < 0 else int(number)


def _is_number(value: object) -> bool:
    """Whether a logger may have meant a number, if only a bad one: a run's files hold null where one was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: object) -> float | None:
    """The number, or None where it is not a finite one."""
    is_finite = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ABSURD
    return float(value) if isinstance(value, int | float) and is_finite else None


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
        """From start to end."""
        return self.curve.change(sigmas, base=self.base)

    @property
    def unit(self) -> str:
        """In words."""
        return "nats/token" if self.per_token else "nats/answer"


def movements(stage: StageHistory, side: Side) -> list[Movement]:
    """Every account of a side's answers, the most informative first: probes, held-out rows, training rows.

    Raises:
        MissingReadingsError: there is none.
    """
    found = [_of_probes(stage, side), _of_metrics(stage, side, "eval_"), _of_metrics(stage, side, "")]
    there = [movement for movement in found if movement is not None]
    if not there:
        limits = stage.limits
        raise MissingReadingsError(
            f"`rewards/{side}`, `logps_mean/{side}` or `logps/{side}`, {limits.min_metric_readings} readings or more, "
            f"or `delta` of probe group `{side}`, {limits.min_probe_readings} or more"
        )
    return there


def pairs_of_movements(stage: StageHistory) -> Sequence[tuple[Movement, Movement]]:
    """The accounts that chosen and rejected answers share, in one unit.

    Raises:
        MissingReadingsError: a side has no account at all.
    """
    rejected = {movement.source: movement for movement in movements(stage, "rejected")}
    both = [(chosen, rejected.get(chosen.source)) for chosen in movements(stage, "chosen")]
    return [(mine, other) for mine, other in both if other is not None and other.per_token == mine.per_token]


def tokens(stage: StageHistory, side: Side, prefix: str = "") -> float | None:
    """Mean length of a side's answers, from sums and means of the same lines; None where either is not logged."""
    sums, means = stage.metrics.get(f"{prefix}logps/{side}"), stage.metrics.get(f"{prefix}logps_mean/{side}")
    if sums is None or means is None:
        return None
    mean_at = dict(zip(means.steps, means.values, strict=True))
    ratios = [
        total / mean_at[step]
        for step, total in zip(sums.steps, sums.values, strict=True)
        if mean_at.get(step, 0.0) < 0 and total < 0
    ]
    return median(ratios) if ratios else None


def _of_probes(stage: StageHistory, side: Side) -> Movement | None:
    delta, level = stage.find_probe(side, "delta"), stage.find_probe(side, "mean_logprob")
    curve = delta or level
    if curve is None:
        return None
    start = level.values[0] - (delta.values[0] if delta is not None else 0.0) if level is not None else None
    return Movement(curve, 0.0 if delta is not None else None, True, _nll(start), "probes")


def _of_metrics(stage: StageHistory, side: Side, prefix: str) -> Movement | None:
    rows = "held-out rows" if prefix else "training rows"
    least = stage.limits.min_probe_readings if prefix else stage.limits.min_metric_readings
    rewards, sums, means = (
        _long_enough(stage.metrics.get(f"{prefix}{name}/{side}"), least) for name in ("rewards", "logps", "logps_mean")
    )
    length = tokens(stage, side, prefix)
    if rewards is not None:  # of the same answers twice, so what differs from batch to batch has cancelled
        ratio = rewards.scaled(1 / (stage.beta * (length or 1)))
        starts_at_zero = abs(rewards.values[0]) / stage.beta <= stage.limits.start_near
        level = means if length else sums
        return Movement(
            ratio, 0.0 if starts_at_zero else None, bool(length), _nll(level.start if level is not None else None), rows
        )
    curve = means or sums
    if curve is None:
        return None
    return Movement(curve, None, means is not None, _nll(curve.start), rows)


def _nll(logprob: float | None) -> float | None:
    return None if logprob is None else max(0.0, -logprob)


def cooling_mode(stage: StageHistory) -> Literal["off", "constant", "on"]:
    """``off`` where the weight is 1 or never logged, ``constant`` where it is one number for all negatives."""
    mean, low, high = (stage.metrics.get(f"cooling/{part}") for part in ("mean", "p10", "p90"))
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
    return "Cool the negatives: write `stage2.cooling: {floor: gentle}`, or `floor: mean` without gentle negatives"
