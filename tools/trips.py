"""Which files of the package a batch, a refresh and a reading pass: ``python tools/trips.py OUT``.

Trains the demo's model for a few steps and watches which functions are called. It prints the list that stands in
``docs/architecture.md``. Files that are only read, such as those of settings, do not show up here.
"""

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import cwdpo
from cwdpo.config.recipe import NegativesConfig, ProbesConfig, Recipe
from cwdpo.demo.plans import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.recipes import run_recipe

PACKAGE = str(Path(cwdpo.__file__).parent)

TRIPS: Mapping[str, tuple[str, ...]] = {
    "**A batch**, from row to loss": (
        *("read_data", "AnswerCollator.__call__", "AnswerTrainer.get_batch_samples", "AnswerTrainer.training_step"),
    ),
    "**An on-policy refresh**": ("OnPolicy._refresh_if_due",),
    "**A probe reading**, from measuring to `probes.jsonl`": ("Probing._read",),
    "**From a run's files to the page**": ("write_report",),
}
"""The functions between whose call and return a trip runs."""


class Watch:
    """Collects the files whose functions are called during each trip."""

    def __init__(self) -> None:
        self.files: defaultdict[str, set[str]] = defaultdict(set)
        self._open: list[tuple[str, FrameType]] = []

    def enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        """Called at each call, see ``sys.settrace``. Of calls that begin a trip, the end is wanted too."""
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
            return None
        begun = [(trip, frame) for trip, starts in TRIPS.items() if code.co_qualname in starts]
        self._open += begun
        for trip, _ in self._open:
            self.files[trip].add(code.co_filename.removeprefix(f"{PACKAGE}/").removesuffix(".py"))
        if not begun:
            return None
        frame.f_trace_lines = False
        return self._leave

    def _leave(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "return":
            self._open = [(trip, start) for trip, start in self._open if start is not frame]
        return self._leave


def small_recipe(out: Path, *, on_policy: bool) -> Recipe:
    """Stage 2 of the demo's CW-DPO run in small, of one step, with probes."""
    _, plans = prepare(out, DemoSettings.small(), seed=0)
    plan = next(plan for plan in plans if plan.method == "CW-DPO")
    negatives = NegativesConfig(k=1, refresh=1, on_policy_fraction=0.5) if on_policy else None
    probes = ProbesConfig(every=1, rows=8)
    trainer = {**plan.recipe.trainer, "max_steps": 1}
    return dataclasses.replace(plan.recipe, stage1=None, trainer=trainer, probes=probes, negatives=negatives)


def watched(recipe: Recipe) -> Mapping[str, set[str]]:
    """Run a recipe and see which files each trip passes."""
    watch = Watch()
    before = sys.gettrace()
    sys.settrace(watch.enter)
    try:
        run_recipe(recipe)
    finally:
        sys.settrace(before)
    return watch.files


def trips(out: Path) -> list[str]:
    """A line of Markdown for each trip: its files, the engine's as one stop and first."""
    lines = []
    for name, on_policy in (("plain", False), ("sampled", True)):
        for trip, files in watched(small_recipe(out / name, on_policy=on_policy)).items():
            if ("refresh" in trip) == on_policy:
                engine = sorted(file.removeprefix("engine/") for file in files if file.startswith("engine/"))
                others = sorted(f"`{file}`" for file in files if not file.startswith("engine/"))
                of_engine = f": {len(others)} and {len(engine)} of the engine ({', '.join(engine)})" if engine else ""
                lines.append(f"- {trip}, {len(files)} files{of_engine}: {', '.join(others)}.")
    return sorted(lines, key=lambda line: [line.startswith(f"- {trip},") for trip in TRIPS], reverse=True)


def main() -> None:
    """Print the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new directory for two small runs")
    print("\n".join(trips(parser.parse_args().out)))


if __name__ == "__main__":
    main()
