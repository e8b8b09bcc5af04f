"""The demo's whole runs, with one row a prompt and with plain rows, write the same losses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from cwdpo.demo.base_model import base_checkpoint
from cwdpo.demo.methods import DemoSettings, make_plans
from cwdpo.demo.world import write_world
from cwdpo.recipes import run_recipe
from cwdpo.records.files import read_jsonl

SETTINGS = DemoSettings(
    train_rows=96,
    eval_rows=1,
    batch_size=8,
    stage1_fraction=0.5,
    stage1_steps=6,
    stage2_steps=6,
    stage2_learning_rate=3e-3,
)


def whole_run(out: Path, engine: Any, world: Path, settings: DemoSettings) -> list[dict[str, Any]]:
    plans = make_plans(out / engine, base=base_checkpoint(), train=world, stage2_rows=world, settings=settings, seed=0)
    recipe = next(plan.recipe for plan in plans if plan.method == "CW-DPO")
    recipe = dataclasses.replace(recipe, engine=engine, trainer={**recipe.trainer, "logging_steps": 1})
    run = run_recipe(recipe)
    noted = json.loads(run.summary.read_text())["stages"]["stage2"]["engine"]
    assert [choice["engine"] for choice in noted["choices"]] == (["tree"] if engine == "tree" else [])
    return read_jsonl(run.metrics).objects


def largest_gap(tree: list[dict[str, Any]], plain: list[dict[str, Any]]) -> float:
    assert [(line["stage"], line["step"]) for line in tree] == [(line["stage"], line["step"]) for line in plain]
    return max(abs(one["loss"] - other["loss"]) for one, other in zip(tree, plain, strict=True))


def test_tree_and_plain_rows_write_the_same_losses(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", seed=0, train=SETTINGS.train_rows, eval=SETTINGS.eval_rows).train
    tree, plain = (whole_run(tmp_path, engine, world, SETTINGS) for engine in ("tree", "plain"))
    assert len(tree) == SETTINGS.stage1_steps + SETTINGS.stage2_steps
    assert largest_gap(tree, plain) < 1e-4
    assert abs(plain[-1]["rewards/margins"]) > 1e-3  # it moved, so equality means something
