"""The demo: a world on disk, three methods on the same rows, one table and one report."""

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cwdpo.data.reading import read_rows, split_rows
from cwdpo.demo.base_model import base_checkpoint
from cwdpo.demo.comparison import COLUMNS, LEGEND, format_table, make_gallery
from cwdpo.demo.measure import Captions, HeldOut, compare_likelihoods, judge_captions, write_captions
from cwdpo.demo.methods import DemoSettings, Plan, make_plans
from cwdpo.demo.world import WorldPaths, read_scenes, write_world
from cwdpo.engine import make_engine
from cwdpo.errors import UserError
from cwdpo.recipes import run_recipe
from cwdpo.records.files import write_json, write_text
from cwdpo.report import write_report
from cwdpo.version import __version__

logger = logging.getLogger(__name__)

_BASE, _START = "base model", "after plain SFT"
_ORDER = ("SFT", "DPO", "CW-DPO")
_PICTURES = 12


@dataclass(frozen=True)
class DemoResult:
    """What the demo found, and where it lies."""

    table: str
    """For a terminal."""

    summary: Path
    report: Path


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    small: bool = False,
    say: Callable[[str], None] = logger.info,
    callbacks: Sequence[TrainerCallback] = (),
) -> DemoResult:
    """Draw a world, train SFT, DPO and two-stage CW-DPO on it from the same base model, and compare them.

    Args:
        out: a new directory: the world in ``world/``, a run directory a method, ``summary.json`` and ``report.html``.
        seed: of the world and of every run.
        small: a few steps only.
        say: told what happens, a line at a time.
        callbacks: told of the training's progress.

    Raises:
        UserError: ``out`` is in use.
    """
    _check_new(out)
    with _one_thread():
        return _run(out, seed, DemoSettings.small() if small else DemoSettings(), say, callbacks)


def _run(
    out: Path, seed: int, settings: DemoSettings, say: Callable[[str], None], callbacks: Sequence[TrainerCallback]
) -> DemoResult:
    began = time.monotonic()
    say(f"Drawing {settings.train_rows} scenes to train on and {settings.eval_rows} to test on")
    world, plans = prepare(out, settings, seed)
    for plan in plans:
        say(f"Training {plan.method}")
        run_recipe(plan.recipe, callbacks=callbacks)
    say("Measuring on held-out scenes")
    rows, gallery = _measure(plans, world, settings, seed)
    summary = {
        "title": "Drawn scenes: SFT, DPO and CW-DPO",
        "seed": seed,
        "hardware": f"1 CPU thread, {platform.machine()}",
        "cwdpo_version": __version__,
        "wall_seconds": round(time.monotonic() - began, 1),
        "settings": asdict(settings),
        "table": {"columns": COLUMNS, "rows": rows},
        "legend": LEGEND,
        "gallery": gallery,
    }
    write_json(out / "summary.json", summary)
    report = write_report([out], out / "report.html")
    return DemoResult(table=f"{format_table(rows)}\n\n{LEGEND}", summary=out / "summary.json", report=report)


def prepare(out: Path, settings: DemoSettings, seed: int) -> tuple[WorldPaths, Sequence[Plan]]:
    """Draw the demo's world into ``out/world``, and plan a run of each method beside it."""
    world = write_world(out / "world", seed=seed, train=settings.train_rows, eval=settings.eval_rows)
    plans = make_plans(
        out,
        base=base_checkpoint(),
        train=world.train,
        held_out=world.eval,
        stage2_rows=_write_stage2_rows(world, settings, seed),
        settings=settings,
        seed=seed,
    )
    return world, plans


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a model this small, threads wait for each other longer than they compute, above all when others run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already, and nothing is overwritten. Give another --out, or remove it first.")


def _write_stage2_rows(world: WorldPaths, settings: DemoSettings, seed: int) -> Path:
    """The rows that stage 2 of a two-stage recipe sees, as a file of their own for a method with no stage 2."""
    _, second = split_rows(read_rows(world.train), settings.stage1_fraction, seed)
    ids = {row.id for row in second}
    lines = world.train.read_text(encoding="utf-8").splitlines()
    path = world.train.with_name("stage2.jsonl")
    write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["id"] in ids))
    return path


def _measure(
    plans: Sequence[Plan], world: WorldPaths, settings: DemoSettings, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and the gallery."""
    rows, truth = read_rows(world.eval), read_scenes(world.scenes)
    held_out = HeldOut(rows, [truth[row.id] for row in rows])
    plan_of: dict[str, Plan] = {plan.method: plan for plan in plans}
    start = plan_of["SFT"].start
    checkpoints = {_BASE: base_checkpoint(), _START: start, **{name: plan_of[name].result for name in _ORDER}}
    captions = {name: write_captions(path, held_out, seed=seed) for name, path in checkpoints.items()}
    steps = {_BASE: 0, _START: settings.stage1_steps}
    engine = make_engine()
    table = []
    for name, path in checkpoints.items():
        reference = plan_of[name].start if name in _ORDER else path
        likelihoods = compare_likelihoods(path, reference, held_out, engine)
        found = _table_row(captions[name], captions[_START], held_out, likelihoods, moved=name in _ORDER)
        total = steps.get(name, settings.stage1_steps + settings.stage2_steps)
        table.append({"name": name, **found, "steps": total})
    shown: Mapping[str, Captions] = {name: texts for name, texts in captions.items() if name != _START}
    return table, make_gallery(shown, held_out, images="world/images", count=_PICTURES)


def _table_row(
    captions: Captions, rival: Captions, held_out: HeldOut, likelihoods: Mapping[str, float], *, moved: bool
) -> dict[str, float | None]:
    """One line of the table. A model that is itself a start has no Delta and no drift."""
    drift = {
        "chosen_delta": likelihoods["delta_total/chosen"],
        "rejected_delta": likelihoods["delta_total/rejected"],
        "tv": likelihoods["tv"],
    }
    return {
        **judge_captions(captions, rival, held_out),
        **{name: value if moved else None for name, value in drift.items()},
        "ece": likelihoods["ece"],
    }
