"""The model in which metric lines and probe lines meet: curves of one stage, by name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cwdpo.diagnosis.curves import Curve
from cwdpo.diagnosis.finding import Finding, MissingReadingsError
from cwdpo.diagnosis.thresholds import Thresholds

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
