"""Whole runs with the tree and with plain rows: ``python -m cwdpo.demo.engines [RECIPE] --out DIR [--key value ...]``.

Without a recipe, the demo's CW-DPO run. Every step's losses are compared; the exit code is 1 where they part.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers

from cwdpo.config.reading import read_recipe
from cwdpo.config.recipe import Recipe
from cwdpo.demo.methods import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.recipes import run_recipe
from cwdpo.records.files import read_jsonl

Name: TypeAlias = Literal["tree", "plain"]

LIMIT = 1e-4
"""nats; losses of two whole runs may differ by less than this."""


@dataclass(frozen=True)
class Comparison:
    """Two runs of one recipe, step by step."""

    steps: int
    gap: float
    """The largest difference of a step's losses."""

    stage: str
    step: int
    """Where that was."""

    first: float
    last: float
    """The losses of the run with plain rows when it began and when it ended, so that equality means something."""


def demo_recipe(out: Path, settings: DemoSettings, *, seed: int = 0) -> Recipe:
    """The demo's recipe of CW-DPO, with its world drawn into ``out``."""
    _, plans = prepare(out, settings, seed)
    return next(plan.recipe for plan in plans if plan.method == "CW-DPO")


def compare_engines(recipe: Recipe, out: Path, *, say: Callable[[str], None] = print) -> Comparison:
    """Run a recipe twice into ``out/tree`` and ``out/plain``.

    Args:
        recipe: its probes are left out, which change no training.
        out: new directories are made in here.
        say: told what happens.

    Raises:
        RuntimeError: the runs are not of the same steps, or the tree was not used.
    """
    runs: dict[Name, list[dict[str, Any]]] = {}
    for name in ("tree", "plain"):
        say(f"running with engine `{name}`")
        runs[name] = whole_run(recipe, out / name, name)
    return _compare(runs["tree"], runs["plain"])


def whole_run(recipe: Recipe, out: Path, engine: Name) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, one a step."""
    trainer = {**recipe.trainer, "logging_steps": 1}
    run = run_recipe(replace(recipe, engine=engine, trainer=trainer, probes=None, output_dir=str(out)))
    stages = json.loads(run.summary.read_text(encoding="utf-8"))["stages"]
    used = {choice["engine"] for stage in stages.values() for choice in stage["engine"]["choices"]}
    if engine == "tree" and used != {"tree"}:
        raise RuntimeError(f"the run that should have used the tree used {', '.join(sorted(used))}")
    return read_jsonl(run.metrics).objects


def _compare(tree: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> Comparison:
    places = [(line["stage"], line["step"]) for line in plain]
    if [(line["stage"], line["step"]) for line in tree] != places:
        raise RuntimeError(f"the runs logged different steps: {len(tree)} and {len(plain)}")
    gaps = [abs(one["loss"] - other["loss"]) for one, other in zip(tree, plain, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    return Comparison(len(gaps), gaps[worst], *places[worst], plain[0]["loss"], plain[-1]["loss"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", help="default: the demo's CW-DPO")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    args, changes = parser.parse_known_args()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    args.out.mkdir(parents=True)
    recipe = demo_recipe(args.out, DemoSettings()) if args.recipe is None else read_recipe(args.recipe, changes)
    found = compare_engines(recipe, args.out, say=_say)
    _say(
        f"{found.steps} steps: losses differ by at most {found.gap:.2g} ({found.stage}, step {found.step}); "
        f"the loss went from {found.first:.4f} to {found.last:.4f}"
    )
    return int(not found.gap < LIMIT)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command of its own


if __name__ == "__main__":
    sys.exit(main())
