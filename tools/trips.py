"""Which files of the package a batch, a refresh and a reading pass: ``python tools/trips.py OUT``.

Trains the demo's model for a few steps and watches which functions are called. ``docs/architecture.md`` lists what it
prints. Files that are only read, such as those of settings, do not show up here.
"""

import argparse
import dataclasses
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import cwdpo
from cwdpo.config.recipe import NegativesConfig, ProbesConfig, Recipe
from cwdpo.demo.plans import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.recipes import run_recipe

PACKAGE = Path(cwdpo.__file__).parent

TRIPS: Mapping[str, tuple[str, ...]] = {
    "batch": ("read_data", "AnswerCollator.__call__", "AnswerTrainer.get_batch_samples", "AnswerTrainer.training_step"),
    "refresh": ("OnPolicy._refresh_if_due",),
    "reading": ("Probing._read",),
    "page": ("write_report",),
}
"""The functions between whose call and return a trip runs."""


class Watch:
    """Collects the files whose functions are called during each trip."""

    def __init__(self) -> None:
        self.files: defaultdict[str, set[str]] = defaultdict(set)
        self._open: list[tuple[str, FrameType]] = []

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        """See ``sys.setprofile``."""
        if event == "call":
            path = Path(frame.f_code.co_filename)
            if not path.is_relative_to(PACKAGE) or frame.f_code.co_name == "<module>":
                return
            name = frame.f_code.co_qualname
            self._open += [(trip, frame) for trip, starts in TRIPS.items() if name in starts]
            for trip in {trip for trip, _ in self._open}:
                self.files[trip].add(str(path.relative_to(PACKAGE)))
        elif event == "return":
            while self._open and self._open[-1][1] is frame:
                self._open.pop()


def small_recipe(out: Path, *, on_policy: bool) -> Recipe:
    """Stage 2 of the demo's CW-DPO run in small, with probes every three steps."""
    _, plans = prepare(out, DemoSettings.small(), seed=0)
    plan = next(plan for plan in plans if plan.method == "CW-DPO")
    negatives = NegativesConfig(k=1, refresh=3, on_policy_fraction=0.5) if on_policy else None
    probes = ProbesConfig(every=3, rows=8)
    return dataclasses.replace(plan.recipe, stage1=None, probes=probes, negatives=negatives)


def watched(recipe: Recipe) -> Mapping[str, set[str]]:
    """Run a recipe and see which files each trip passes."""
    watch = Watch()
    sys.setprofile(watch)
    try:
        run_recipe(recipe)
    finally:
        sys.setprofile(None)
    return watch.files


def main() -> None:
    """Print each trip's files, the engine's as one stop and apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new directory for two small runs")
    out = parser.parse_args().out
    plain, sampled = (watched(small_recipe(out / name, on_policy=name == "sampled")) for name in ("plain", "sampled"))
    for trip in TRIPS:
        files = sampled[trip] if trip == "refresh" else plain[trip]
        engine = [name for name in files if name.startswith("engine/")]
        print(f"{trip}: {len(files)} files, {len(engine)} of them the engine's")
        print("  " + ", ".join(sorted(files)))


if __name__ == "__main__":
    main()
