"""Measure on-policy negatives and their curriculum on drawn scenes: what slips through, what it costs, what it gives.

    python examples/drawn_scenes/on_policy.py --out runs/on_policy --seeds 0 1 2

For each seed: a world, stage 1 plain and smooth, then stage 2 as DPO and as CW-DPO with on-policy negatives, each
without and with a curriculum. One core, some six minutes a seed. A seed that is measured already is not measured again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import TrainerCallback

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.config.recipe import DataConfig, NegativesConfig, ProbesConfig, Recipe
from cwdpo.data.reading import read_rows, split_rows
from cwdpo.data.rows import Row
from cwdpo.demo.judge import right_captions, same_clauses, same_meanings
from cwdpo.demo.plans import DemoSettings, Plan, base_checkpoint, make_plans
from cwdpo.demo.world import WorldPaths, check_caption, read_scenes, win_rate, write_world
from cwdpo.generation import Generated, generate_answers
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.negatives.candidates import read_refreshes
from cwdpo.negatives.filtering import RightAnswers, Rules
from cwdpo.negatives.verify import Judge, verify
from cwdpo.recipes import run_recipe
from cwdpo.records import read_jsonl, write_json, write_text

JUDGE = "cwdpo.demo.judge:right_captions"
NEGATIVES = {
    "on-policy": NegativesConfig(max_new_tokens=40, judge=JUDGE),
    "curriculum": NegativesConfig(max_new_tokens=40, judge=JUDGE, k=3, curriculum="auto"),
}
"""All else is the default: half of the negatives from the policy, new ones every epoch."""

PROBES = ProbesConfig(every=10, groups=["chosen", "rejected", "gentle"])

RULES: dict[str, tuple[Rules, Judge | None]] = {
    "text rules": (Rules(), None),
    "and max_overlap: 0.8": (Rules(overlap=0.8), None),
    "and the same words in any order": (Rules(), same_clauses),
    "and their synonyms": (Rules(), same_meanings),
    "and the truth": (Rules(), right_captions),
}


class CpuSeconds(TrainerCallback):
    """CPU seconds of the steps and of what lies between them. It begins after the first refresh."""

    def __init__(self) -> None:
        self.began = self.spent = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.began = time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.spent = time.process_time() - self.began


def main() -> None:
    """Measure every seed, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a directory; each seed has one of its own in it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small", action="store_true", help="a few steps on a few rows: whether it works")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    settings = DemoSettings.small() if arguments.small else DemoSettings()
    found = []
    for seed in arguments.seeds:
        path = arguments.out / f"seed-{seed}" / "measured.json"
        if not path.exists():
            write_json(path, measure_seed(path.parent, settings, seed))
        found.append(json.loads(path.read_text(encoding="utf-8")))
        print(tables(found[-1:], f"seed {seed}"), flush=True)
    print(tables(found, f"mean of the seeds {', '.join(map(str, arguments.seeds))}"))


def measure_seed(out: Path, settings: DemoSettings, seed: int) -> dict[str, Any]:
    """Everything of one seed."""
    began = time.process_time()
    world = write_world(out / "world", seed=seed, train=settings.train_rows, eval=settings.eval_rows)
    first, second = _write_stages(world, settings, seed)
    paths = {"base": base_checkpoint(), "train": world.train, "held_out": world.eval, "stage2_rows": second}
    plans = make_plans(out, **paths, settings=settings, seed=seed)
    held_out = read_rows(world.eval)
    measured: dict[str, Any] = {"seed": seed, "settings": asdict(settings), "quality": {}, "runs": {}}
    for plan in (plan for plan in plans if plan.recipe.stage2 is not None):
        start = _run(plan.recipe, f"{plan.recipe.output_dir}_start", data=first, stage2=None) / "stage1"
        before = _captions(start, held_out)
        measured["quality"][f"{plan.method}, before"] = _quality(before, before, held_out, world)
        for name, negatives in NEGATIVES.items():
            cpu = CpuSeconds()
            run = _train(plan, start, second, name, negatives, cpu)
            measured["runs"][f"{plan.method}, {name}"] = _run_facts(run, cpu.spent, read_rows(second))
            after = _captions(run / "stage2", held_out)
            measured["quality"][f"{plan.method}, {name}"] = _quality(after, before, held_out, world)
    return measured | {"cpu_seconds": round(time.process_time() - began, 1)}


def _write_stages(world: WorldPaths, settings: DemoSettings, seed: int) -> tuple[Path, Path]:
    """The rows of each stage as files of their own."""
    lines = {json.loads(line)["id"]: line for line in world.train.read_text(encoding="utf-8").splitlines()}
    paths = []
    for name, rows in zip(
        ("stage1", "stage2"), split_rows(read_rows(world.train), settings.stage1_fraction, seed), strict=True
    ):
        paths.append(world.train.with_name(f"{name}.jsonl"))
        write_text(paths[-1], "".join(f"{lines[row.id]}\n" for row in rows))
    return paths[0], paths[1]


def _train(plan: Plan, start: Path, rows: Path, name: str, negatives: NegativesConfig, clock: TrainerCallback) -> Path:
    """Stage 2 of a method with on-policy negatives; returns its run directory."""
    model = replace(plan.recipe.model, name_or_path=str(start))
    recipe = replace(plan.recipe, model=model, negatives=negatives, probes=PROBES)
    return _run(recipe, f"{recipe.output_dir}_{name.replace('-', '_')}", data=rows, stage1=None, clock=clock)


def _run(recipe: Recipe, out: str, *, data: Path, clock: TrainerCallback | None = None, **stages: None) -> Path:
    of_stage: DataConfig = replace(recipe.data, train=str(data))
    complete = replace(recipe, data=of_stage, output_dir=out, probes=PROBES, **stages)
    run_recipe(complete, callbacks=[clock] if clock else [])
    return Path(out)


def _captions(checkpoint: Path, rows: Sequence[Row]) -> list[str]:
    """What a model says of pictures, greedily."""
    model, processor = load_policy(checkpoint, dtype="float32"), load_processor(checkpoint)
    return generate_answers(model, processor, rows, batch_size=128, max_new_tokens=40)


def _quality(
    captions: Sequence[str], before: Sequence[str], rows: Sequence[Row], world: WorldPaths
) -> dict[str, float]:
    truth = read_scenes(world.scenes)
    scenes = [truth[row.id] for row in rows]
    verdicts = [check_caption(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    return {
        "exact": fmean(verdict.exact for verdict in verdicts),
        "hallucination": fmean(verdict.hallucinated for verdict in verdicts),
        "win": win_rate(captions, before, scenes),
    }


def _run_facts(run: Path, loop_seconds: float, rows: Sequence[Row]) -> dict[str, Any]:
    """What a run's refreshes let through and cost, and where the curriculum went."""
    refreshes = read_refreshes(run / "negatives")
    seconds = [refresh.details["cpu_seconds"] for refresh in refreshes]
    rest = loop_seconds - sum(seconds[1:])  # the first came before the clock
    samples = [c for refresh in refreshes for c in refresh.candidates if c.source == "on_policy"]
    lines = [line for line in read_jsonl(run / "metrics.jsonl").objects if "loss" in line]
    levels = {line["step"]: line["negatives/level"] for line in lines if "negatives/level" in line}
    ended = [(rows[c.row], c.text) for c in samples if c.reason not in ("cut", "empty")]
    return {
        "refresh_seconds": seconds,
        "rest_seconds": round(rest, 2),
        "share": sum(seconds) / (sum(seconds) + rest),
        "counts": [refresh.counts() for refresh in refreshes],
        "levels": levels,
        "rules": {name: _let_through(ended, rules, judge, rows) for name, (rules, judge) in RULES.items()},
    }


def _let_through(
    samples: Sequence[tuple[Row, str]], rules: Rules, judge: Judge | None, rows: Sequence[Row]
) -> dict[str, float]:
    """Of the samples that some rules let through, how many are right; of the wrong ones, how many they drop."""
    asked, answers = [row for row, _ in samples], [text for _, text in samples]
    reasons = verify(
        asked,
        [[Generated(text, True)] for text in answers],
        right_answers=RightAnswers(rows),
        rules=rules,
        judge=judge,
    )
    kept = [of_row[0] is None for of_row in reasons]
    right = right_captions(asked, answers)
    return {
        "samples": len(samples),
        "passed": sum(kept),
        "right": sum(map(bool.__and__, kept, right)),
        "wrong": len(right) - sum(right),
        "wrong_dropped": sum(not keeps and not is_right for keeps, is_right in zip(kept, right, strict=True)),
    }


def tables(seeds: Sequence[dict[str, Any]], title: str) -> str:
    """The figures of one or more seeds, their mean where they are several."""
    lines = [f"\n{title}", f"{'samples let through by':32} {'right ones':>10} {'wrong ones lost':>15}"]
    for name in RULES:
        sums = [run["rules"][name] for seed in seeds for run in seed["runs"].values()]
        right, passed = sum(s["right"] for s in sums), sum(s["passed"] for s in sums)
        lost, wrong = sum(s["wrong_dropped"] for s in sums), sum(s["wrong"] for s in sums)
        lines.append(f"{name:32} {right / max(passed, 1):10.2%} {lost / max(wrong, 1):15.2%}")
    lines.append(f"\n{'CPU seconds':22} {'refreshes':>10} {'the rest':>10} {'share':>7}")
    for name in seeds[0]["runs"]:
        runs = [seed["runs"][name] for seed in seeds]
        spent, rest = fmean(sum(run["refresh_seconds"]) for run in runs), fmean(run["rest_seconds"] for run in runs)
        lines.append(f"{name:22} {spent:10.1f} {rest:10.1f} {fmean(run['share'] for run in runs):7.1%}")
    columns = ("exact", "hallucination", "win")
    lines.append(f"\n{'held-out captions':22} " + " ".join(f"{column:>14}" for column in columns))
    for name in seeds[0]["quality"]:
        means = [fmean(seed["quality"][name][column] for seed in seeds) for column in columns]
        lines.append(f"{name:22} " + " ".join(f"{mean:14.1%}" for mean in means))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
