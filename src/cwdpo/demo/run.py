"""The demo: a world on disk, three methods on the same rows, one table and one report."""

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from transformers import TrainerCallback

from cwdpo import __version__
from cwdpo.data.encode import EncodedMemory, Encoder
from cwdpo.data.reading import read_rows, split_rows
from cwdpo.data.rows import Row
from cwdpo.demo.plans import DemoSettings, Plan, base_checkpoint, make_plans
from cwdpo.demo.world import PROMPT, Scene, WorldPaths, check_caption, read_scenes, win_rate, write_world
from cwdpo.engine import make_engine
from cwdpo.errors import UserError
from cwdpo.evaluation.likelihood import evaluate_rows
from cwdpo.generation import generate_answers
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.recipes import run_recipe
from cwdpo.records import write_json, write_text
from cwdpo.reference import FrozenCopy
from cwdpo.report import write_report

logger = logging.getLogger(__name__)

COLUMNS: tuple[dict[str, str], ...] = (
    {"key": "exact", "label": "exact", "better": "up", "format": ".1%"},
    {"key": "exact_sampled", "label": "exact, sampled", "better": "up", "format": ".1%"},
    {"key": "hallucination", "label": "hallucination", "better": "down", "format": ".1%"},
    {"key": "win", "label": "win rate", "better": "up", "format": ".1%"},
    {"key": "win_sampled", "label": "win, sampled", "better": "up", "format": ".1%"},
    {"key": "chosen_delta", "label": "chosen Delta", "better": "up", "format": "+.2f"},
    {"key": "rejected_delta", "label": "rejected Delta", "format": "+.2f"},
    {"key": "ece", "label": "ECE", "better": "down", "format": ".3f"},
    {"key": "tv", "label": "TV", "better": "down", "format": ".3f"},
    {"key": "steps", "label": "steps", "format": "d"},
)
"""What is measured, in the form that the report reads."""

LEGEND = (
    "exact: captions with every attribute right; hallucination: captions that name a thing that is not there; "
    "win rate: against plain SFT after stage 1, ties half; Delta: log pi - log pi_ref of held-out captions, nats; "
    "ECE: token calibration error; TV: total variation to the model before the second phase. "
    "One seed: differences of a point or two are chance."
)


class DemoResult(NamedTuple):
    """What the demo found, as a table for a terminal, and where it lies."""

    table: str
    summary: Path
    report: Path


class HeldOut(NamedTuple):
    """Rows that no method was trained on, and what is really in their pictures."""

    rows: Sequence[Row]
    scenes: Sequence[Scene]


class Captions(NamedTuple):
    """A model's captions of the held-out pictures: greedy, and sampled at temperature 1."""

    greedy: Sequence[str]
    sampled: Sequence[str]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    small: bool = False,
    say: Callable[[str], None] = logger.info,
    callbacks: Sequence[TrainerCallback] = (),
) -> DemoResult:
    """Draw a world, train SFT, DPO and two-stage CW-DPO on it from the same base model, and compare them.

    ``out`` is a new directory: the world in ``world/``, a run directory a method, ``summary.json`` and ``report.html``.
    The seed is the world's and every run's; ``small`` takes a few steps only; ``say`` gets a line when a step begins.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already, and nothing is overwritten. Give another --out, or remove it first.")
    settings = DemoSettings.small() if small else DemoSettings()
    began, threads = time.monotonic(), torch.get_num_threads()
    # on a model this small, threads wait for each other longer than they compute, above all when others run
    torch.set_num_threads(1)
    try:
        say(f"Drawing {settings.train_rows} scenes to train on and {settings.eval_rows} to test on")
        world, plans = prepare(out, settings, seed)
        for plan in plans:
            say(f"Training {plan.method}")
            run_recipe(plan.recipe, callbacks=callbacks)
        say("Measuring on held-out scenes")
        rows, gallery = _measure(plans, world, settings, seed)
    finally:
        torch.set_num_threads(threads)
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
    # the rows that stage 2 of a two-stage recipe sees, as a file of their own for a method with no stage 2
    _, second = split_rows(read_rows(world.train), settings.stage1_fraction, seed)
    ids = {row.id for row in second}
    lines = world.train.read_text(encoding="utf-8").splitlines()
    stage2_rows = world.train.with_name("stage2.jsonl")
    write_text(stage2_rows, "".join(f"{line}\n" for line in lines if json.loads(line)["id"] in ids))
    plans = make_plans(
        out,
        base=base_checkpoint(),
        train=world.train,
        held_out=world.eval,
        stage2_rows=stage2_rows,
        settings=settings,
        seed=seed,
    )
    return world, plans


def write_captions(
    checkpoint: Path, rows: Sequence[Row], *, seed: int, encoded: EncodedMemory | None = None
) -> Captions:
    """Let the model of a checkpoint caption the picture of every row, greedily and sampled; the rows may be ``encoded``
    already, with the same processor."""
    model, processor = load_policy(checkpoint, dtype="float32"), load_processor(checkpoint)
    encoder = Encoder(processor, memory=encoded or EncodedMemory())

    def captions(temperature: float | None) -> list[str]:
        return generate_answers(
            model,
            processor,
            rows,
            batch_size=128,
            max_new_tokens=_LONGEST,
            temperature=temperature,
            seed=seed,
            encoder=encoder,
        )

    return Captions(greedy=captions(None), sampled=captions(1.0))


def judge_captions(captions: Captions, rival: Captions, held_out: HeldOut) -> dict[str, float]:
    """Shares from 0 to 1: exactness and hallucination (of greedy captions) by the truth, and wins over a rival's."""
    scenes = held_out.scenes
    greedy, sampled = ([check_caption(*pair) for pair in zip(texts, scenes, strict=True)] for texts in captions)
    return {
        "exact": fmean(verdict.exact for verdict in greedy),
        "exact_sampled": fmean(verdict.exact for verdict in sampled),
        "hallucination": fmean(verdict.hallucinated for verdict in greedy),
        "win": win_rate(captions.greedy, rival.greedy, scenes),
        "win_sampled": win_rate(captions.sampled, rival.sampled, scenes),
    }


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text, of rows with a ``name`` and the keys of :data:`COLUMNS`; a value that is missing is a dash."""
    lines = [["", *(column["label"] for column in COLUMNS)]]
    for row in rows:
        cells = (format(row[c["key"]], c["format"]) if row.get(c["key"]) is not None else "-" for c in COLUMNS)
        lines.append([str(row["name"]), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for name, *numbers in lines:
        cells = (cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        texts.append("  ".join([name.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(texts)


def make_gallery(
    captions: Mapping[str, Captions], held_out: HeldOut, *, images: str, count: int
) -> list[dict[str, Any]]:
    """Pictures with the greedy captions of every model: first those on which the models differ most.

    Models are named as in the table; ``images`` is the pictures' directory relative to the file that holds the gallery.
    """
    entries = []
    for index, (row, scene) in enumerate(zip(*held_out, strict=True)):
        texts = {name: of_model.greedy[index] for name, of_model in captions.items()}
        right = {name: check_caption(text, scene).exact for name, text in texts.items()}
        answers = [{"name": name, "text": text, "right": right[name]} for name, text in texts.items()]
        entry = {"image": f"{images}/{row.id}.png", "prompt": PROMPT, "chosen": row.chosen, "answers": answers}
        entries.append((abs(2 * sum(right.values()) - len(right)), entry))
    return [entry for _, entry in sorted(entries, key=lambda scored: scored[0])][:count]


_BASE, _START = "base model", "after plain SFT"
_ORDER = ("SFT", "DPO", "CW-DPO")
_LONGEST = 40  # tokens; the longest caption of the grammar has 24


def _measure(
    plans: Sequence[Plan], world: WorldPaths, settings: DemoSettings, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the table, and the gallery."""
    rows, truth = read_rows(world.eval), read_scenes(world.scenes)
    held_out = HeldOut(rows, [truth[row.id] for row in rows])
    plan_of: dict[str, Plan] = {plan.method: plan for plan in plans}
    start = plan_of["SFT"].start
    checkpoints = {_BASE: base_checkpoint(), _START: start, **{name: plan_of[name].result for name in _ORDER}}
    captions = {name: write_captions(path, rows, seed=seed) for name, path in checkpoints.items()}
    steps = {_BASE: 0, _START: settings.stage1_steps}
    engine = make_engine()
    table = []
    for name, path in checkpoints.items():
        moved = name in _ORDER  # a model that is itself a start has no Delta and no drift
        model, started = (load_policy(p, dtype="float32") for p in (path, plan_of[name].start if moved else path))
        likelihoods = evaluate_rows(model, FrozenCopy(started, engine), load_processor(path), rows, engine)
        found = {
            **(shares := judge_captions(captions[name], captions[_START], held_out)),
            **{f"{key} error": math.sqrt(share * (1 - share) / len(rows)) for key, share in shares.items()},
            "chosen_delta": likelihoods["delta_total/chosen"] if moved else None,
            "rejected_delta": likelihoods["delta_total/rejected"] if moved else None,
            "tv": likelihoods["tv"] if moved else None,
            "ece": likelihoods["ece"],
            "steps": steps.get(name, settings.stage1_steps + settings.stage2_steps),
        }
        table.append({"name": name, **found})
    shown = {name: texts for name, texts in captions.items() if name != _START}
    return table, make_gallery(shown, held_out, images="world/images", count=12)
