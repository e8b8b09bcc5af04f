"""How far one side's answers moved since the stage began, from whichever readings tell it best."""

from dataclasses import dataclass
from statistics import median

from cwdpo.diagnosis.curves import Change, Curve
from cwdpo.diagnosis.finding import MissingReadingsError
from cwdpo.diagnosis.history import StageHistory


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
