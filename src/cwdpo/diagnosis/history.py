"""The model in which metric lines and probe lines meet: curves of one stage, by name."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import sub
from statistics import median
from typing import Any, Literal, TypeAlias

from cwdpo.diagnosis.thresholds import Thresholds


@dataclass(frozen=True)
class Finding:
    """One named problem, the numbers that show it, and what to change."""

    name: str
    """``squeezing``, ``likelihood_displacement``, ...; the names that ``docs/diagnosis.md`` explains."""

    evidence: str
    """Where and when, and the numbers with their units."""

    advice: str
    """What to change, by the names of the recipe."""

    stage: str | None = None
    step: int | None = None
    """Last step that was looked at, or the step at which it happened."""


@dataclass(frozen=True)
class NotJudged:
    """A sign that could not be looked for, and the readings it wanted."""

    name: str
    stage: str
    needs: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that one look at a history gives."""

    findings: Sequence[Finding]
    """Most harmful first."""

    looked_at: Sequence[str]
    """A line a stage: how many readings, from which step to which."""

    clear: Sequence[str]
    """Names of the signs that were looked for in at least one stage, and found in none."""

    not_judged: Sequence[NotJudged]
    notes: Sequence[str]
    """What was skipped, and what was taken for granted."""

    def missing(self) -> list[tuple[str, Sequence[str], str]]:
        """What could not be judged, each told once: the sign, the stages, and the readings it wanted."""
        stages: dict[tuple[str, str], list[str]] = {}
        for one in self.not_judged:
            stages.setdefault((one.name, one.needs), []).append(one.stage)
        return [(name, where, needs) for (name, needs), where in stages.items()]

    def to_json(self) -> dict[str, Any]:
        """The content of ``findings.json``."""
        return {
            "findings": [vars(finding) for finding in self.findings],
            "looked_at": list(self.looked_at),
            "clear": list(self.clear),
            "not_judged": [vars(missing) for missing in self.not_judged],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: object) -> "Diagnosis | None":
        """The diagnosis that :meth:`to_json` gave; None where this is not a whole one."""
        if not isinstance(content, Mapping):
            return None
        try:
            return cls(
                findings=[Finding(**entry) for entry in content["findings"]],
                looked_at=[str(line) for line in content["looked_at"]],
                clear=[str(name) for name in content["clear"]],
                not_judged=[NotJudged(**entry) for entry in content["not_judged"]],
                notes=[str(note) for note in content["notes"]],
            )
        except (KeyError, TypeError):
            return None


def title_of(name: str) -> str:
    """Words of a sign's name.

    Example:
        >>> title_of("easy_negative_saturation")
        'Easy negative saturation'
    """
    return name.replace("_", " ").capitalize()


class MissingReadingsError(Exception):
    """A sign cannot be judged; the message names the readings it lacks. Never leaves this package."""


_FEW = 10  # readings: fewer are read one by one, more by medians over windows
_MEDIAN = 1.2533  # standard error of a median over that of a mean, for normal noise: sqrt(pi / 2)


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
        """End minus start."""
        return self.end - self.start

    def rose(self, by: float) -> bool:
        """By at least so much, and not by chance."""
        return self.held - self.start >= by and self.held - self.start > self.doubt

    def fell(self, by: float) -> bool:
        """By at least so much (a positive number), and not by chance."""
        return self.start - self.held >= by and self.start - self.held > self.doubt


@dataclass(frozen=True)
class Curve:
    """Finite readings, oldest first."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.values)

    def scaled(self, factor: float) -> "Curve":
        """The curve with every value times a factor."""
        return Curve(self.steps, tuple(value * factor for value in self.values))

    def against(self, other: "Curve", combine: Callable[[float, float], float]) -> "Curve":
        """Both curves' values combined, at the steps that both have."""
        at = dict(zip(other.steps, other.values, strict=True))
        points = [(s, combine(v, at[s])) for s, v in zip(self.steps, self.values, strict=True) if s in at]
        if not points:
            raise MissingReadingsError("readings of different kinds at the same steps")
        return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))

    def minus(self, other: "Curve") -> "Curve":
        """The difference, at the steps that both have."""
        return self.against(other, sub)

    def change(self, sigmas: float, *, base: float | None = None) -> Change:
        """From the start to the end.

        Args:
            sigmas: standard errors up to which a change may be noise.
            base: value at the start where it is known without noise (a log-ratio to the start is 0 there).
        """
        opening = 1 if self._few else self._opening
        error = _MEDIAN * self.noise * math.sqrt((1 / opening if base is None else 0) + 1 / self._window)
        start = self.start if base is None else base
        held = min(self.values[-2:], key=lambda value: abs(value - start)) if self._few else self.end
        return Change(start, self.end, held, sigmas * error)

    @cached_property
    def start(self) -> float:
        """Median of the first readings; the first one where there are few."""
        return self.values[0] if self._few else median(self.values[: self._opening])

    @cached_property
    def end(self) -> float:
        """Median of the last fifth of the readings; the last one where there are few."""
        return median(self.values[-self._window :])

    @cached_property
    def lowest(self) -> tuple[float, int]:
        """Lowest level that lasted, and the step in its middle."""
        if self._few:
            pairs = list(zip(self.values, self.values[1:], self.steps[1:], strict=False))
            return min(((max(a, b), step) for a, b, step in pairs), default=(self.values[-1], self.steps[-1]))
        width, blocks = self._window, []
        for last in range(len(self), width - 1, -width):
            blocks.append((median(self.values[last - width : last]), self.steps[last - 1 - width // 2]))
        return min(blocks)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of one reading about the trend, from second differences; 0 where too few can tell."""
        if len(self) < 5:
            return 0.0
        bends = [abs(a - 2 * b + c) for a, b, c in zip(self.values, self.values[1:], self.values[2:], strict=False)]
        return median(bends) / (0.6745 * math.sqrt(6))

    @property
    def _few(self) -> bool:
        return len(self) < _FEW

    @property
    def _opening(self) -> int:
        # short, because what happens in the first tenth of a run is part of what happened
        return max(3, min(20, len(self) // 10))

    @property
    def _window(self) -> int:
        return 1 if self._few else len(self) // 5


DEFAULT_BETA = 0.1
"""Inverse temperature where a history does not tell it: our default and TRL's."""

_METRICS = frozenset(
    [f"{kind}/{side}" for kind in ("rewards", "logps", "logps_mean") for side in ("chosen", "rejected")]
    + [f"cooling/{part}" for part in ("mean", "p10", "p50", "p90")]
    + ["rewards/margins", "rewards/accuracies", "loss", "grad_norm", "entropy"]
)
_HELD_OUT = frozenset(f"eval_{name}" for name in _METRICS)  # the Trainer's prefix for the evaluation rows
_PROBES = frozenset(["mean_logprob", "delta", "entropy", "top1", "argmax_mass", "ece", "tv", "js"])
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
    """Metric -> the steps at which it was logged and no finite number."""

    first_step: int
    last_step: int
    num_metrics: int
    num_probes: int
    """Lines of each kind; a probe reading has one line a group."""

    has_steps: bool
    """Whether lines say their step; else they are numbered as they come, and none is known to be the first step."""

    beta: float
    limits: Thresholds

    @property
    def prefers(self) -> bool:
        """Whether preferences were trained: a supervised stage logs no rewards."""
        rewards = any(name.startswith(("rewards/", "eval_rewards/")) for name in self.metrics)
        unnamed = self.name == "run" and "logps/rejected" in self.metrics
        return self.name == "stage2" or rewards or unnamed or (self.name == "run" and not self.metrics)

    def metric(self, name: str) -> Curve:
        """A curve long enough to judge.

        Raises:
            MissingReadingsError: it is not there, or too short.
        """
        curve = self.find_metric(name)
        if curve is None:
            raise MissingReadingsError(
                self._needs(f"`{name}`", self.metrics.get(name), self.limits.min_metric_readings)
            )
        return curve

    def find_metric(self, name: str) -> Curve | None:
        """The same, or None."""
        curve = self.metrics.get(name)
        return curve if curve is not None and len(curve) >= self.limits.min_metric_readings else None

    def probe(self, group: str, name: str) -> Curve:
        """A curve of a probe group long enough to judge.

        Raises:
            MissingReadingsError: it is not there, or too short.
        """
        curve = self.find_probe(group, name)
        if curve is None:
            found = self.probes.get((group, name))
            raise MissingReadingsError(
                self._needs(f"`{name}` of probe group `{group}`", found, self.limits.min_probe_readings)
            )
        return curve

    def find_probe(self, group: str, name: str) -> Curve | None:
        """The same, or None."""
        curve = self.probes.get((group, name))
        return curve if curve is not None and len(curve) >= self.limits.min_probe_readings else None

    def finding(self, name: str, evidence: str, advice: str, *, step: int | None = None) -> Finding:
        """A finding of this stage; its evidence begins with stage and step."""
        step = self.last_step if step is None else step
        where = f"step {step}" if self.name == "run" else f"{self.name}, step {step}"
        return Finding(name, f"{where}: {evidence}.", advice, None if self.name == "run" else self.name, step)

    def _needs(self, what: str, found: Curve | None, least: int) -> str:
        return f"{what}, {least} readings or more ({len(found) if found is not None else 0} found)"


@dataclass
class _Columns:
    """A stage while it is read: name -> step -> value; a step told twice keeps its last value."""

    metrics: dict[str, dict[int, float | None]] = field(default_factory=dict)
    probes: dict[tuple[str, str], dict[int, float | None]] = field(default_factory=dict)
    steps: set[int] = field(default_factory=set)
    metric_steps: set[int] = field(default_factory=set)
    num_probes: int = 0
    has_steps: bool = True
    last_step: int = -1


@dataclass(frozen=True)
class History:
    """All stages of a run, in the order in which they appear."""

    stages: tuple[StageHistory, ...]
    num_unreadable: int
    """Items that are no reading: no object, or with nothing in them that is known."""

    @classmethod
    def of(cls, readings: Iterable[Any], *, beta: float | None = None, limits: Thresholds | None = None) -> "History":
        """Sort readings into curves, in one pass.

        Args:
            readings: lines of ``metrics.jsonl`` and ``probes.jsonl`` in any mixture, or a TRL ``log_history``;
                those of one stage oldest first. What is no reading is counted and left out.
            beta: of the preference loss; None takes 0.1.
            limits: None takes the defaults.
        """
        stages: dict[str, _Columns] = {}
        unreadable = 0
        for reading in readings:
            if not (isinstance(reading, Mapping) and _take(reading, stages)):
                unreadable += 1
        beta = DEFAULT_BETA if beta is None else beta
        return cls(
            tuple(_stage(name, columns, beta, limits or Thresholds()) for name, columns in stages.items()), unreadable
        )


def _take(reading: Mapping[Any, Any], stages: dict[str, _Columns]) -> bool:
    """Put one reading where it belongs; False where nothing in it is known."""
    group = reading.get("group")
    names = _PROBES if group is not None else _METRICS | _HELD_OUT
    known = {name: _number(value) for name, value in reading.items() if name in names and _is_number(value)}
    if not known:
        return any(isinstance(key, str) and key in ("train_runtime", "eval_runtime") for key in reading)
    columns = stages.setdefault(str(reading.get("stage", "run")), _Columns())
    step = _step(reading.get("step"))
    if step is None:
        columns.has_steps = False
        step = columns.last_step + 1
    columns.last_step = step
    columns.steps.add(step)
    if group is not None:
        columns.num_probes += 1
        for name, value in known.items():
            columns.probes.setdefault((str(group), name), {})[step] = value
    else:
        columns.metric_steps.add(step)
        for name, value in known.items():
            columns.metrics.setdefault(name, {})[step] = value
    return True


def _stage(name: str, columns: _Columns, beta: float, limits: Thresholds) -> StageHistory:
    broken = {
        key: tuple(sorted(step for step, value in column.items() if value is None))
        for key, column in columns.metrics.items()
        if None in column.values()
    }
    return StageHistory(
        name=name,
        metrics={key: curve for key, column in columns.metrics.items() if len(curve := _curve(column))},
        probes={key: curve for key, column in columns.probes.items() if len(curve := _curve(column))},
        broken=broken,
        first_step=min(columns.steps),
        last_step=max(columns.steps),
        num_metrics=len(columns.metric_steps),
        num_probes=columns.num_probes,
        has_steps=columns.has_steps,
        beta=beta,
        limits=limits,
    )


def _curve(column: Mapping[int, float | None]) -> Curve:
    points = sorted((step, value) for step, value in column.items() if value is not None)
    return Curve(tuple(step for step, _ in points), tuple(value for _, value in points))


def _step(value: object) -> int | None:
    number = _number(value) if _is_number(value) else None
    return None if number is None or number < 0 else int(number)


def _is_number(value: object) -> bool:
    """Whether a logger may have meant a number, if only a bad one: a run's files hold null where one was not finite."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float | None:
    """The number, or None where it is not finite."""
    return float(value) if value is not None and abs(value) < _ABSURD else None


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


def movements(stage: StageHistory, side: str) -> list[Movement]:
    """Every account of a side's answers: probes, held-out rows, training rows; the most telling first.

    Raises:
        MissingReadingsError: there is none.
    """
    found = [_of_probes(stage, side), _of_metrics(stage, side, "eval_"), _of_metrics(stage, side, "")]
    told = [movement for movement in found if movement is not None]
    if not told:
        limits = stage.limits
        raise MissingReadingsError(
            f"`rewards/{side}`, `logps_mean/{side}` or `logps/{side}`, {limits.min_metric_readings} readings or more, "
            f"or `delta` of probe group `{side}`, {limits.min_probe_readings} or more"
        )
    return told


def tokens(stage: StageHistory, side: str, prefix: str = "") -> float | None:
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


def _of_probes(stage: StageHistory, side: str) -> Movement | None:
    delta, level = stage.find_probe(side, "delta"), stage.find_probe(side, "mean_logprob")
    curve = delta or level
    if curve is None:
        return None
    start = level.values[0] - (delta.values[0] if delta is not None else 0.0) if level is not None else None
    return Movement(curve, 0.0 if delta is not None else None, True, _nll(start), "probes")


def _of_metrics(stage: StageHistory, side: str, prefix: str) -> Movement | None:
    rows = "held-out rows" if prefix else "training rows"
    least = stage.limits.min_probe_readings if prefix else stage.limits.min_metric_readings

    def find(name: str) -> Curve | None:
        curve = stage.metrics.get(f"{prefix}{name}/{side}")
        return curve if curve is not None and len(curve) >= least else None

    rewards, sums, means = find("rewards"), find("logps"), find("logps_mean")
    length = tokens(stage, side, prefix)
    if rewards is not None:  # of the same answers twice, so what differs from batch to batch has cancelled
        ratio = rewards.scaled(1 / (stage.beta * (length or 1)))
        starts_at_zero = abs(rewards.values[0]) / stage.beta <= stage.limits.start_near
        level = (means if length else sums) or None
        return Movement(ratio, 0.0 if starts_at_zero else None, bool(length), _nll(level and level.start), rows)
    curve = means or sums
    if curve is None:
        return None
    return Movement(curve, None, means is not None, _nll(curve.start), rows)


def _nll(logprob: float | None) -> float | None:
    return None if logprob is None else max(0.0, -logprob)


CoolingMode: TypeAlias = Literal["off", "constant", "on"]


def cooling_mode(stage: StageHistory) -> CoolingMode:
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
