"""Pictures of probes and diagnosis from real runs: ``python docs/make_pictures.py RUNS``.

Trains the demo's DPO and CW-DPO (seed 0) into RUNS with a reading every ten steps, five minutes on one core, and draws
``docs/probes/*.svg`` and ``docs/diagnosis/*.svg`` from what the runs wrote. Runs that are there are not repeated.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cwdpo.config.recipe import ProbesConfig
from cwdpo.demo.plans import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.diagnosis import Thresholds
from cwdpo.recipes import run_recipe
from cwdpo.records import RunDirectory, read_jsonl
from cwdpo.report.charts import Curve, Figure, draw_figure

DOCS = Path(__file__).parent
METHODS = ("DPO", "CW-DPO")
GROUPS = ("chosen", "gentle", "greedy", "shuffled")
BETA = DemoSettings().beta


def train(directory: Path) -> dict[str, RunDirectory]:
    """Both runs, by method."""
    _, plans = prepare(directory, DemoSettings(), seed=0)
    runs = {}
    for plan in plans:
        if plan.method in METHODS:
            run = RunDirectory(Path(plan.recipe.output_dir))
            if not run.summary.is_file():
                run_recipe(replace(plan.recipe, probes=ProbesConfig(every=10)))
            runs[plan.method] = run
    return runs


def stage2(path: Path, **wanted: Any) -> list[Mapping[str, Any]]:
    """Lines of stage 2 that have these values."""
    lines = [line for line in read_jsonl(path).objects if line.get("stage") == "stage2"]
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def probes(run: RunDirectory, group: str, name: str) -> list[tuple[float, float]]:
    """One curve of ``probes.jsonl``."""
    return [(line["step"], line[name]) for line in stage2(run.probes, group=group)]


def span(curves: Sequence[Curve], *also: float) -> tuple[float, float]:
    """What all curves lie within, with some room."""
    values = [*also, *(y for curve in curves for _, y in curve.points)]
    room = 0.08 * (max(values) - min(values))
    return min(values) - room, max(values) + room


def draw(path: Path, title: str, y_label: str, curves: Sequence[Curve], *also: float) -> None:
    """Write one picture over the steps of stage 2."""
    last = max(x for curve in curves for x, _ in curve.points)
    figure = Figure(
        title=title, x_label="step of stage 2", y_label=y_label, x=(0, last), y=span(curves, *also), curves=curves
    )
    path.parent.mkdir(exist_ok=True)
    path.write_text(draw_figure(figure), encoding="utf-8")


def fall_of_training_rows(run: RunDirectory) -> list[tuple[float, float]]:
    """Chosen answers' change since the stage began in training rows, nats per token, from rewards and lengths."""
    points = []
    for line in stage2(run.metrics):
        if "rewards/chosen" in line:
            tokens = line["logps/chosen"] / line["logps_mean/chosen"]
            points.append((line["step"], line["rewards/chosen"] / BETA / tokens))
    return points


def main(directory: Path) -> None:
    """Train where needed, and draw."""
    runs = train(directory)
    for method, run in runs.items():
        curves = [Curve(group, probes(run, group, "delta"), colour) for colour, group in enumerate(GROUPS)]
        name = method.lower().replace("-", "_")
        draw(
            DOCS / "probes" / f"{name}.svg",
            f"{method}: what held-out answers gain and lose",
            "delta, nats per token",
            curves,
        )
    chosen = [Curve(method, fall_of_training_rows(run), colour) for colour, (method, run) in enumerate(runs.items())]
    first = stage2(runs["DPO"].metrics)[0]
    limits = Thresholds()
    limit = max(limits.fall_least, limits.fall_share * -first["logps_mean/chosen"])
    last = chosen[0].points[-1][0]
    chosen.append(Curve("limit of a finding", [(0, -limit), (last, -limit)], 2, dashed=True))
    draw(DOCS / "diagnosis" / "squeezing.svg", "Right answers in training rows", "change, nats per token", chosen, 0.0)
    margins = [
        Curve(method, [(line["step"], line["rewards/margins"]) for line in stage2(run.metrics)], colour)
        for colour, (method, run) in enumerate(runs.items())
    ]
    title = "The reward margin, which looks excellent for DPO"
    draw(DOCS / "diagnosis" / "margin.svg", title, "reward margin", margins, 0.0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
