"""Synthetic histories: one healthy run, and ways to spoil it."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

Line = dict[str, Any]
Shape = Callable[[float], float]
"""Value at a share of the run from 0 to 1."""

HEALTHY: Mapping[str, Shape] = {
    "loss": lambda t: 0.693 - 0.15 * t,
    "rewards/chosen": lambda t: 0.1 * t,
    "rewards/rejected": lambda t: -0.3 * t,
    "logps/chosen": lambda t: -20 + t,
    "logps/rejected": lambda t: -30 - 3 * t,
    "logps_mean/chosen": lambda t: -1.0 + 0.05 * t,
    "logps_mean/rejected": lambda t: -1.5 - 0.15 * t,
    "rewards/accuracies": lambda t: 0.5 + 0.35 * t,
    "grad_norm": lambda t: 1.0,
    "entropy": lambda t: 0.95 - 0.03 * t,
    "cooling/mean": lambda t: 0.5,
    "cooling/p10": lambda t: 0.1,
    "cooling/p90": lambda t: 0.9,
}
NOISE = {
    "loss": 0.01, "rewards/chosen": 0.01, "rewards/rejected": 0.02, "logps/chosen": 1.0, "logps/rejected": 1.5,
    "logps_mean/chosen": 0.03, "logps_mean/rejected": 0.05, "rewards/accuracies": 0.04, "grad_norm": 0.2,
    "entropy": 0.01, "cooling/mean": 0.02, "cooling/p10": 0.01, "cooling/p90": 0.02,
}  # fmt: skip


def metrics(changed: Mapping[str, Shape | None] | None = None, *, n: int = 40, seed: int = 0, every: int = 5,
            stage: str | None = "stage2", noise: float = 1.0) -> list[Line]:  # fmt: skip
    """A healthy preference run with some curves replaced; None takes a curve out."""
    rng, shapes = random.Random(seed), {**HEALTHY, **(changed or {})}
    lines = []
    for i in range(n):
        t = i / (n - 1)
        line: Line = {"step": i * every} if stage is None else {"stage": stage, "step": i * every}
        for name, shape in shapes.items():
            if shape is not None:
                wobble = rng.gauss(0, noise * NOISE[name]) if i or not name.startswith("rewards/") else 0.0
                line[name] = shape(t) + wobble
        if "rewards/chosen" in line and "rewards/rejected" in line:
            line["rewards/margins"] = line["rewards/chosen"] - line["rewards/rejected"]
        lines.append(line)
    return lines


def supervised(changed: Mapping[str, Shape | None] | None = None, *, seed: int = 0, n: int = 40) -> list[Line]:
    """A healthy stage 1: no rewards, chosen answers only."""
    shapes: dict[str, Shape | None] = dict.fromkeys(HEALTHY)
    shapes |= {"loss": lambda t: 1.0 - 0.3 * t, "logps/chosen": lambda t: -20 + 6 * t,
               "logps_mean/chosen": lambda t: -1 + 0.3 * t, "entropy": lambda t: 0.95 - 0.25 * t,
               "grad_norm": lambda t: 1.0}  # fmt: skip
    return metrics({**shapes, **(changed or {})}, seed=seed, n=n, stage="stage1")


def probe(group: str, name: str, shape: Shape, *, n: int = 6, stage: str = "stage2") -> list[Line]:
    """Readings of one thing in one group, without noise."""
    return [{"stage": stage, "step": 40 * i, "group": group, "n": 64, name: shape(i / (n - 1))} for i in range(n)]


def flat(level: float) -> Shape:
    return lambda t: level


def line(start: float, end: float) -> Shape:
    return lambda t: start + (end - start) * t


LOG2 = math.log(2)
