"""What the diagnosis says of the demo's methods, and what early stopping on it saves of plain DPO.

    python examples/drawn_scenes/stopping.py --out runs/stopping --seeds 0 1 2

For each seed: the demo's three runs and their findings; DPO's exact captions on held-out scenes along its stage 2, from
kept checkpoints; and the same DPO run with ``probes: {stop_on: [squeezing, likelihood_displacement]}``. About seven
minutes a seed on one core. The table goes to standard output and, with all numbers, to ``OUT/stopping.json``.
"""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from cwdpo.config.recipe import ProbesConfig, Recipe
from cwdpo.data.reading import read_rows
from cwdpo.demo.plans import DemoSettings
from cwdpo.demo.run import prepare
from cwdpo.demo.world import WorldPaths, check_caption, read_scenes
from cwdpo.generation import generate_answers
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.recipes import run_recipe
from cwdpo.records import write_json

STOP_ON = ["squeezing", "likelihood_displacement"]
EVERY = 10  # steps between readings, and between the checkpoints that DPO's curve is made of


def exact_share(checkpoint: Path, world: WorldPaths, processor: Any) -> float:
    """Share of held-out scenes whose greedy caption has every attribute right."""
    rows, truth = read_rows(world.eval), read_scenes(world.scenes)
    captions = generate_answers(
        load_policy(checkpoint, dtype="float32"), processor, rows, batch_size=128, max_new_tokens=40
    )
    return fmean(check_caption(said, truth[row.id]).exact for said, row in zip(captions, rows, strict=True))


def with_checkpoints(recipe: Recipe) -> Recipe:
    """The same training with a checkpoint of stage 2's model every few steps."""
    assert recipe.stage2 is not None
    kept = {"save_strategy": "steps", "save_steps": EVERY, "save_total_limit": None}
    stage2 = dataclasses.replace(recipe.stage2, trainer={**recipe.stage2.trainer, **kept})
    return dataclasses.replace(recipe, stage2=stage2)


def stopping(recipe: Recipe, directory: Path) -> Recipe:
    """The same training, ended by the findings."""
    probes = ProbesConfig(every=EVERY, stop_on=STOP_ON)
    return dataclasses.replace(recipe, probes=probes, output_dir=str(directory))


def findings(run: Path) -> list[str]:
    """Names of what was found in stage 2, or in the only stage."""
    found = json.loads((run / "findings.json").read_text(encoding="utf-8"))["findings"]
    return [finding["name"] for finding in found]


def one_seed(directory: Path, seed: int, settings: DemoSettings) -> dict[str, Any]:
    """All runs of a seed."""
    world, plans = prepare(directory, settings, seed)
    found = {}
    for plan in plans:
        recipe = with_checkpoints(plan.recipe) if plan.method == "DPO" else plan.recipe
        run_recipe(recipe)
        found[plan.method] = findings(Path(recipe.output_dir))
    dpo = next(plan for plan in plans if plan.method == "DPO")
    ended = directory / "dpo_stopped"
    run_recipe(stopping(dpo.recipe, ended))
    stopped = json.loads((ended / "findings.json").read_text(encoding="utf-8"))["stopped"]
    processor = load_processor(dpo.start)
    checkpoints = {
        int(path.name.split("-")[1]): path
        for path in Path(dpo.recipe.output_dir).glob("checkpoints/stage2/checkpoint-*")
    }
    curve = {0: exact_share(dpo.start, world, processor)}
    curve |= {step: exact_share(checkpoints[step], world, processor) for step in sorted(checkpoints)}
    return {
        "seed": seed,
        "findings": found,
        "dpo_exact_by_step": curve,
        "stopped_at": stopped[0]["step"] if stopped else None,
        "stopped_exact": exact_share(ended / "stage2", world, processor),
    }


def row_of(result: dict[str, Any]) -> str:
    """One seed as a line."""
    curve = result["dpo_exact_by_step"]
    peak = max(curve, key=curve.__getitem__)
    last = max(curve)
    found = {name: ", ".join(names) or "none" for name, names in result["findings"].items()}
    return (
        f"seed {result['seed']}: DPO peaks at {curve[peak]:.1%} (step {peak}), ends at {curve[last]:.1%} "
        f"(step {last}); "
        f"stopped at step {result['stopped_at']}: {result['stopped_exact']:.1%}, "
        f"{100 * (result['stopped_exact'] - curve[peak]):+.1f} points from the peak\n"
        + "\n".join(f"  {name}: {names}" for name, names in found.items())
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it works")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    torch.set_num_threads(1)
    settings = DemoSettings.small() if options.small else DemoSettings()
    results = []
    for seed in options.seeds:
        results.append(one_seed(options.out / f"seed{seed}", seed, settings))
        print(row_of(results[-1]), flush=True)
        write_json(options.out / "stopping.json", {"seeds": results})


if __name__ == "__main__":
    main()
