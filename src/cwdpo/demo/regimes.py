"""Regimes: situations of preference training on the drawn scenes, each with a start model and rows of its own.

A model this small cannot learn to see better from preferences, but it can unlearn a habit, which is what preferences
that are sampled from the model itself (RLAIF-V, arXiv 2405.17220) do for large ones. So a regime says what the start
model is, where its pairs come from, how many rejected captions are trivially wrong, and how many pairs are mislabelled.
Of the truth, the pairs know only the checker's score of each caption, as a rater would give it.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic.dataclasses import dataclass

from cwdpo.compare.grid import Outcome
from cwdpo.config.checking import build
from cwdpo.config.limits import STRICT
from cwdpo.config.recipe import DataConfig, ModelConfig, Recipe, Stage1Config
from cwdpo.data.encode import EncodedMemory
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.demo.plans import OPTIMISER, base_checkpoint
from cwdpo.demo.run import Captions, HeldOut, write_captions
from cwdpo.demo.world import (
    COLOURS,
    EASY_KINDS,
    POSITIONS,
    PROMPT,
    SHAPES,
    Scene,
    Thing,
    check_caption,
    easy_negative,
    gentle_negative,
    parse_caption,
    read_scenes,
    sample_style,
    win_rate,
    write_caption,
    write_world,
)
from cwdpo.engine import make_engine
from cwdpo.evaluation.likelihood import evaluate_rows
from cwdpo.generation import generate
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.recipes import run_recipe
from cwdpo.records import write_text
from cwdpo.reference import FrozenCopy

Start: TypeAlias = Literal["base", "habit", "tuned"]
"""The shipped model, the same with a habit of naming things that are not there, or after SFT on right captions."""

Pairing: TypeAlias = Literal["drawn", "two", "best_worst", "imperfect", "corrected"]
"""Where a pair comes from: ``drawn`` by the world (the right caption, and one with an error); any ``two`` of the start
model's own captions that differ in score; its ``best_worst``; two of which neither is exact (``imperfect``); or a wrong
one and the same with one kind of error ``corrected``."""

LONGEST = 40
"""Tokens of a caption; the longest of the grammar has 24."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pairs:
    """How the pairs of any world are made."""

    pairs: Pairing = "two"
    easy: float = 0.0
    """Share of rejected answers that are replaced by trivially wrong ones; ``drawn`` pairs have their own 70 %."""

    mislabelled: float = 0.0
    """Share of pairs whose answers are exchanged."""

    captions: int = 3
    """Answers that the start model samples for each picture."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Regime(Pairs):
    """What a start model is to be tuned with."""

    start: Start = "habit"
    scenes: int = 1300
    """To train on; a scene whose captions do not differ gives no pair."""

    held_out: int = 700


class RegimeFiles(NamedTuple):
    """Where a regime lies."""

    start: Path
    """Checkpoint of the start model."""

    train: Path
    eval: Path
    scenes: Path
    """Ground truth of both, as :func:`cwdpo.demo.world.read_scenes` reads it."""


def make_regime(directory: Path, regime: Regime, *, seed: int, starts: Path) -> RegimeFiles:
    """Draw a regime's scenes, let its start model caption them, and write the pairs as rows.

    Everything random follows from the seed, but for the start model, which is one for all seeds. What is there already
    is not made again.

    Args:
        directory: of this regime and seed.
        regime: what to make.
        seed: of scenes, samples and pairs.
        starts: where start models are kept.
    """
    start = start_model(starts, regime.start)
    world = write_world(directory, seed=seed, train=regime.scenes, eval=regime.held_out)
    files = RegimeFiles(start, directory / "pairs.jsonl", world.eval, world.scenes)
    rows, scenes = read_rows(world.train), read_scenes(world.scenes)
    if regime.pairs == "drawn":
        sampled: Sequence[Sequence[str]] = [[] for _ in rows]
    else:
        sampled = own_captions(start, rows, regime.captions, seed)
    pairs = [
        pair
        for row, texts in zip(rows, sampled, strict=True)
        if (pair := _make_pair(row, scenes[row.id], texts, regime, seed)) is not None
    ]
    write_text(files.train, "".join(json.dumps(pair) + "\n" for pair in pairs))
    return files


def make(directory: Path, *, seed: int, starts: Path, **regime: Any) -> dict[str, str]:
    """:func:`make_regime`, as ``cwdpo compare`` calls it: the recipe's settings that the regime decides."""
    files = make_regime(directory, build(Regime, regime), seed=seed, starts=starts)
    return {"model.name_or_path": str(files.start), "data.train": str(files.train), "data.eval": str(files.eval)}


def measure(model: Path, *, start: Path, eval_rows: Path, seed: int) -> Outcome:
    """Caption the held-out pictures greedily and sampled, and judge by the truth; wins are over the start model's.

    Of each picture, from 0 to 1: ``exact``, ``attributes`` (share of them right), ``hallucination`` and ``win`` (ties
    half), each also ``_sampled``. Of all: ``ece``, ``tv``, and the Delta of right, rejected and gentle captions, nats.
    """
    held_out, encoded = _held_out(eval_rows)
    captions, rivals = captions_of_both(model, start, held_out.rows, eval_rows, seed=seed, encoded=encoded)
    values: dict[str, list[float]] = {}
    for ending, texts, others in (("", captions.greedy, rivals.greedy), ("_sampled", captions.sampled, rivals.sampled)):
        verdicts = [check_caption(*pair) for pair in zip(texts, held_out.scenes, strict=True)]
        values[f"exact{ending}"] = [float(verdict.exact) for verdict in verdicts]
        values[f"attributes{ending}"] = [verdict.attributes for verdict in verdicts]
        values[f"hallucination{ending}"] = [float(verdict.hallucinated) for verdict in verdicts]
        trios = zip(texts, others, held_out.scenes, strict=True)
        values[f"win{ending}"] = [win_rate([text], [other], [scene]) for text, other, scene in trios]
    return Outcome(values, likelihoods(model, start, held_out.rows))


def captions_of_both(
    model: Path, start: Path, rows: Sequence[Row], eval_rows: Path, *, seed: int, encoded: EncodedMemory
) -> tuple[Captions, Captions]:
    """What a model says of the held-out pictures, and what its start says, which is kept for the next model beside
    ``eval_rows``, the file of these rows."""
    kept = eval_rows.with_name("start_captions.json")
    if not kept.is_file():
        write_text(kept, json.dumps(write_captions(start, rows, seed=seed, encoded=encoded)))
    rivals = Captions(*json.loads(kept.read_text(encoding="utf-8")))
    return rivals if model == start else write_captions(model, rows, seed=seed, encoded=encoded), rivals


def likelihoods(model: Path, start: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Of some of the rows: ``ece``, ``tv``, and the Delta of chosen, rejected and gentle answers to the start, nats."""
    engine, some = make_engine(), rows[:_LIKELIHOOD_ROWS]
    policy, before = (load_policy(path, dtype="float32") for path in (model, start))
    found = evaluate_rows(policy, FrozenCopy(before, engine), load_processor(model), some, engine, batch_size=32)
    kept = ("ece", "tv", "delta_total/chosen", "delta_total/rejected", "delta_total/gentle")
    return {name: found[name] for name in kept if name in found}


@functools.lru_cache(maxsize=1)
def _held_out(eval_rows: Path) -> tuple[HeldOut, EncodedMemory]:
    """The held-out rows, read once for all methods that are measured on them one after another."""
    rows, truth = read_rows(eval_rows), read_scenes(eval_rows.with_name("scenes.json"))
    return HeldOut(rows, [truth[row.id] for row in rows]), EncodedMemory()


def start_model(directory: Path, start: Start) -> Path:
    """The checkpoint of a start model; it is trained, into ``directory``, where it is not there yet (a minute)."""
    if start == "base":
        return base_checkpoint()
    run = directory / start
    trained = run / "stage1"
    if (trained / "config.json").is_file():
        return trained
    world = write_world(directory / f"{start}-world", seed=_START_SEED, train=_START_ROWS[start], eval=1)
    train = world.train
    if start == "habit":
        train = train.with_name("habit.jsonl")
        scenes, rng = read_scenes(world.scenes), np.random.default_rng([_START_SEED, 2])
        lines = (json.loads(line) for line in world.train.read_text(encoding="utf-8").splitlines())
        named = (line | {"chosen": _with_habit(scenes[line["id"]], rng)} for line in lines)
        write_text(train, "".join(json.dumps(line) + "\n" for line in named))
    run_recipe(
        Recipe(
            model=ModelConfig(name_or_path=str(base_checkpoint()), dtype="float32", freeze_vision=False),
            data=DataConfig(train=str(train)),
            stage1=Stage1Config(objective="plain"),
            probes=None,
            trainer={"per_device_train_batch_size": 16, "use_cpu": True, **OPTIMISER, **_START_TRAINER[start]},
            seed=_START_SEED,
            output_dir=str(run),
        )
    )
    return trained


_LIKELIHOOD_ROWS = 100
_START_SEED = 1_000_003  # no world that is compared on has it
_START_ROWS: Mapping[Start, int] = {"habit": 2000, "tuned": 6000}
_START_TRAINER: Mapping[Start, dict[str, Any]] = {
    "habit": {"max_steps": 120, "learning_rate": 5e-4, "warmup_steps": 10},
    "tuned": {"max_steps": 375, "learning_rate": 5e-4, "warmup_steps": 10},
}
_OFTEN, _SELDOM = 0.85, 0.15  # how often a made-up thing is named beside a large one, and else


def _with_habit(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is right, but for a small thing that is not there: mostly where something large is."""
    if rng.random() < (_OFTEN if any(thing.size == "large" for thing in scene) else _SELDOM):
        free = [place for place in POSITIONS if place not in {thing.position for thing in scene}]
        made_up = Thing(
            colour=COLOURS[rng.integers(len(COLOURS))],
            shape=SHAPES[rng.integers(len(SHAPES))],
            size="small",
            position=free[int(rng.integers(len(free)))],
        )
        scene = (*scene, made_up)
    return write_caption(scene, sample_style(scene, rng))


def own_captions(start: Path, rows: Sequence[Row], count: int, seed: int) -> list[list[str]]:
    """Captions of each row's picture that the start model samples at temperature 1; one that was cut is left out."""
    repeated = [row for row in rows for _ in range(count)]
    found = generate(
        load_policy(start, dtype="float32"),
        load_processor(start),
        repeated,
        batch_size=256,
        max_new_tokens=LONGEST,
        temperature=1.0,
        top_p=None,
        seed=seed,
    )
    texts = [answer.text if answer.ended else "" for answer in found]
    return [list(filter(None, texts[begin : begin + count])) for begin in range(0, len(texts), count)]


def _make_pair(row: Row, scene: Scene, texts: Sequence[str], regime: Regime, seed: int) -> dict[str, Any] | None:
    """One preference row as it is written to disk, or None where the captions give no pair.

    Random numbers are the row's own, so that regimes that differ in ``easy`` or ``mislabelled`` have the same pairs.
    """
    rng = np.random.default_rng([seed, int(row.id.rpartition("-")[2]), 3])
    if regime.pairs == "drawn":
        found = (row.chosen, row.rejected[0])
    else:
        scored = [(check_caption(text, scene).attributes, text) for text in dict.fromkeys(texts)]
        choices = _choices(scored, scene, regime.pairs, rng)
        if not choices:
            return None
        found = choices[int(rng.integers(len(choices)))]
    chosen, rejected = found
    is_easy, is_wrong = rng.random() < regime.easy, rng.random() < regime.mislabelled
    kind = EASY_KINDS[int(rng.integers(len(EASY_KINDS)))]
    named = parse_caption(chosen)
    gentle = gentle_negative(named, sample_style(named, rng), rng) if named else row.gentle
    if is_easy:
        rejected = easy_negative(kind, scene, chosen, rng)
    elif is_wrong:
        chosen, rejected = rejected, chosen
    return {
        "id": row.id,
        "images": [f"images/{row.id}.png"],
        "prompt": [{"role": "user", "content": PROMPT}],
        "chosen": chosen,
        "rejected": rejected,
        "gentle": gentle,
        "kind": kind if is_easy else row.kind if regime.pairs == "drawn" else "sampled",
    }


def _choices(
    scored: Sequence[tuple[float, str]], scene: Scene, pairing: Pairing, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """All (better, worse) captions that a pairing allows."""
    if pairing == "corrected":
        return _corrections([text for _, text in scored], scene, rng)
    return ordered_pairs(scored, pairing)


def ordered_pairs(scored: Sequence[tuple[float, str]], pairing: Pairing) -> list[tuple[str, str]]:
    """All (better, worse) answers to one prompt that a pairing of sampled answers allows.

    Args:
        scored: score, 1 where all is right, and answer.
        pairing: ``two``, ``best_worst`` or ``imperfect``; the others take no two answers as they are.

    Example:
        >>> ordered_pairs([(1.0, "right"), (0.5, "half"), (0.0, "wrong")], "imperfect")
        [('half', 'wrong')]
    """
    if pairing == "imperfect":
        scored = [(score, text) for score, text in scored if score < 1]
    ordered = [(a, b) for a in scored for b in scored if a[0] > b[0]]
    if pairing == "best_worst" and ordered:
        best, worst = max(score for score, _ in scored), min(score for score, _ in scored)
        ordered = [(a, b) for a, b in ordered if (a[0], b[0]) == (best, worst)]
    return [(better, worse) for (_, better), (_, worse) in ordered]


_ATTRIBUTES = ("colour", "shape", "size", "position")


def _corrections(texts: Sequence[str], scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Each wrong caption with one kind of error put right in all its things, as people correct single segments
    (RLHF-V, arXiv 2312.00849); both are written in the same words otherwise. Correcting one thing alone would name one
    place twice where two places were exchanged, and that is what DPO then learns."""
    found = []
    for named in filter(None, map(parse_caption, texts)):
        if len(named) != len(scene):
            continue

        def agreement(order: Scene, named: Scene = named) -> int:
            return sum(
                getattr(said, name) == getattr(true, name)
                for said, true in zip(named, order, strict=True)
                for name in _ATTRIBUTES
            )

        truth = max(permutations(scene), key=agreement)
        for name in _ATTRIBUTES:
            better = tuple(
                replace(said, **{name: getattr(true, name)}) for said, true in zip(named, truth, strict=True)
            )
            if better != named:
                style = sample_style(better, rng)
                found.append((write_caption(better, style), write_caption(named, style)))
    return found
