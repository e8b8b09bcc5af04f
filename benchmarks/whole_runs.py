"""Whole runs with the tree and with plain rows: ``python -m benchmarks.whole_runs [RECIPE] --out DIR``.

Without a recipe, the demo's CW-DPO run. Every step's losses are compared; the exit code is 1 where they part. Training
lets the last bit grow: after some dozens of steps two runs differ that differ in their rounding alone. ``--control``
shows how far, with plain rows padded on the other side.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias
from unittest import mock

import torch
import transformers

from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.demo.plans import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.engine.plain import PlainEngine
from cwdpo.recipes import run_recipe, stages
from cwdpo.records import read_jsonl

Name: TypeAlias = Literal["tree", "plain", "control"]

LIMIT = 1e-4
"""nats; losses of two whole runs may differ by less than this."""

_WORDS = {"tree": "one row a prompt", "plain": "one row an answer", "control": "one row an answer, padded on the left"}


@dataclass(frozen=True)
class Comparison:
    """Two runs of one recipe, step by step."""

    steps: int
    equal: int
    """How many steps went by before losses first differed by :data:`LIMIT` or more."""

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


def compare_engines(
    recipe: Recipe, out: Path, *, other: Name = "tree", say: Callable[[str], None] = print
) -> Comparison:
    """Run a recipe with plain rows, into ``out/plain`` unless it is there already, and another way, beside it.

    Args:
        recipe: its probes are left out, which change no training.
        out: new directories are made in here.
        other: the other way.
        say: called with a line before each run.

    Raises:
        RuntimeError: the runs are not of the same steps, or the tree was not used.
    """
    names: tuple[Name, Name] = ("plain", other)
    runs = []
    for name in names:
        say(f"running: {_WORDS[name]}")
        done = out / name / "metrics.jsonl"
        runs.append(read_jsonl(done).objects if done.exists() else whole_run(recipe, out / name, name))
    return _compare(runs[1], runs[0])


def whole_run(recipe: Recipe, out: Path, engine: Name) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, one a step."""
    trainer = {**recipe.trainer, "logging_steps": 1}
    recipe = replace(recipe, engine="tree" if engine == "tree" else "plain", trainer=trainer, probes=None)
    left = mock.patch.object(stages, "make_engine", return_value=PlainEngine(padding_side="left"))
    with left if engine == "control" else nullcontext():
        run = run_recipe(replace(recipe, output_dir=str(out)))
    noted = json.loads(run.summary.read_text(encoding="utf-8"))["stages"]
    used = {choice["engine"] for stage in noted.values() for choice in stage["engine"]["choices"]}
    if engine == "tree" and used != {"tree"}:
        raise RuntimeError(f"the run that should have used the tree used {', '.join(sorted(used))}")
    return read_jsonl(run.metrics).objects


def _compare(tree: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> Comparison:
    places = [(line["stage"], line["step"]) for line in plain]
    if [(line["stage"], line["step"]) for line in tree] != places:
        raise RuntimeError(f"the runs logged different steps: {len(tree)} and {len(plain)}")
    gaps = [abs(one["loss"] - other["loss"]) for one, other in zip(tree, plain, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    equal = next((i for i, gap in enumerate(gaps) if not gap < LIMIT), len(gaps))
    return Comparison(len(gaps), equal, gaps[worst], *places[worst], plain[0]["loss"], plain[-1]["loss"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="?", help="default: the demo's CW-DPO")
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--control", action="store_true", help="also show what rounding alone does")
    args, changes = parser.parse_known_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True)
    recipe = demo_recipe(args.out, DemoSettings()) if args.recipe is None else read_recipe(args.recipe, changes)
    others: tuple[Name, ...] = ("tree", "control") if args.control else ("tree",)
    found = {other: compare_engines(recipe, args.out, other=other, say=_say) for other in others}
    for other, one in found.items():
        _say(
            f"{_WORDS[other]}: {one.equal} of {one.steps} steps equal to {LIMIT:g}; losses differ by at most "
            f"{one.gap:.2g} ({one.stage}, step {one.step}), which went from {one.first:.4f} to {one.last:.4f}"
        )
    return int(not found["tree"].gap < LIMIT)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
