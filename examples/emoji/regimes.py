"""Regimes of preference training on the emoji of people, as ``cwdpo.demo.regimes`` has them of drawn scenes.

``cwdpo compare regimes.yaml`` calls :func:`make` for each world and seed, and :func:`measure` for each model. A regime
says what the start model is, where its pairs come from, how many rejected answers are trivially wrong, and how many
pairs are mislabelled. Of the truth, pairs of sampled names know only the score of each name, as a rater would give it.
"""

import functools
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic.dataclasses import dataclass

from cwdpo.compare.grid import Outcome
from cwdpo.config.checking import build
from cwdpo.config.limits import STRICT
from cwdpo.config.recipe import DataConfig, ModelConfig, Recipe, Stage1Config
from cwdpo.data.encode import EncodedMemory
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.demo.plans import OPTIMISER
from cwdpo.demo.regimes import Pairs, captions_of_both, likelihoods, ordered_pairs, own_captions
from cwdpo.errors import UserError
from cwdpo.recipes import run_recipe
from cwdpo.records import write_jsonl
from examples.emoji.emoji_names import ATTRIBUTES, HAIR, Reading, judge, made_up, put_right, read_name, share_right

HERE = Path(__file__).parent
Start: TypeAlias = Literal["base", "habit"]
"""The model of base.py, or the same with a habit of naming hair that is not there."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Regime(Pairs):
    """What a start model is to be tuned with; ``drawn`` pairs are the rows of build.py."""

    start: Start = "habit"
    pictures: int = 700
    """To train on, drawn from train.jsonl; a picture whose names do not differ in score gives no pair."""

    held_out: int = 240
    """To measure on, drawn from eval.jsonl."""

    base: str = str(HERE / "base")
    """The checkpoint that base.py made."""

    data: str = str(HERE / "data")
    """The pictures and rows that build.py made."""


def make(directory: Path, *, seed: int, starts: Path, **regime: Any) -> dict[str, str]:
    """Draw a regime's pictures, let its start model name them, and write the pairs, as ``cwdpo compare`` calls it.

    Everything random follows from the seed, but for the start model, which is one for all seeds.

    Args:
        directory: of this regime and seed; its pictures are copied there.
        seed: of pictures, samples and pairs.
        starts: where start models are kept.
        regime: what to make, see :class:`Regime`.

    Returns:
        The recipe's settings that the regime decides.
    """
    wanted = build(Regime, regime)
    data = Path(wanted.data)
    start = start_model(starts, wanted)
    drawn = _draw(_read(data / "train.jsonl"), wanted.pictures, f"{seed} train")
    asked = _write(directory / "drawn.jsonl", drawn, data)
    held_out = _write(
        directory / "eval.jsonl", _draw(_read(data / "eval.jsonl"), wanted.held_out, f"{seed} eval"), data
    )
    sampled: Sequence[Sequence[str]] = [[]] * len(drawn)
    if wanted.pairs != "drawn":
        sampled = own_captions(start, read_rows(asked), wanted.captions, seed)
    wrong, known = _easy_answers(data), _known_names(data)
    made = (_pair(*each, wanted, wrong, known, seed) for each in zip(drawn, sampled, strict=True))
    train = _write(directory / "pairs.jsonl", [pair for pair in made if pair is not None], data)
    return {"model.name_or_path": str(start), "data.train": str(train), "data.eval": str(held_out)}


def measure(model: Path, *, start: Path, eval_rows: Path, seed: int) -> Outcome:
    """Let a model name the held-out pictures greedily and sampled, and judge by their names.

    Of each picture, from 0 to 1: ``exact``, ``tone`` and ``who`` (:func:`~examples.emoji.emoji_names.judge`),
    ``hallucination`` (:func:`~examples.emoji.emoji_names.made_up`) and ``win`` over the start model's name (an exact
    name wins, else the one with more right attributes; ties half), each also ``_sampled``. Of all: ``ece``, ``tv``,
    and the Delta of right, rejected and gentle names, nats.
    """
    rows, encoded = _held_out(eval_rows)
    names = [row.chosen for row in rows]
    said, rivals = captions_of_both(model, start, rows, eval_rows, seed=seed, encoded=encoded)
    values: dict[str, list[float]] = {}
    for ending, texts, others in (("", said.greedy, rivals.greedy), ("_sampled", said.sampled, rivals.sampled)):
        for what, right in judge(texts, names).items():
            values[f"{what}{ending}"] = [float(one) for one in right]
        values[f"hallucination{ending}"] = [float(bool(made_up(*each))) for each in zip(texts, names, strict=True)]
        values[f"win{ending}"] = [_win(*each) for each in zip(texts, others, names, strict=True)]
    return Outcome(values, likelihoods(model, start, rows))


def _win(text: str, other: str, name: str) -> float:
    ours, theirs = ((each == name, share_right(each, name)) for each in (text, other))
    return 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0


@functools.lru_cache(maxsize=1)
def _held_out(eval_rows: Path) -> tuple[list[Row], EncodedMemory]:
    """The held-out rows, read once for all methods that are measured on them one after another."""
    return read_rows(eval_rows), EncodedMemory()


def start_model(directory: Path, regime: Regime) -> Path:
    """The checkpoint of a regime's start model; the habit is trained into ``directory`` where it is not there yet (a
    minute), on pictures that the base model was trained on too."""
    base, data = Path(regime.base), Path(regime.data)
    if not (base / "config.json").is_file():
        raise UserError(f"{base} holds no model. Make it with: python examples/emoji/base.py")
    if regime.start == "base":
        return base
    run = directory / "emoji-habit"
    trained = run / "stage1"
    if not (trained / "config.json").is_file():
        rng = random.Random(_START_SEED)
        known = [row for row in _read(data / "pretrain.jsonl") if read_name(row["chosen"]).get("tone")]
        rows = [row | {"chosen": with_habit(row["chosen"], rng)} for row in known]
        train = _write(directory / "emoji-habit-world" / "habit.jsonl", rows, data)
        run_recipe(
            Recipe(
                model=ModelConfig(name_or_path=str(base), dtype="float32", freeze_vision=False),
                data=DataConfig(train=str(train)),
                stage1=Stage1Config(objective="plain"),
                probes=None,
                trainer={"use_cpu": True, **OPTIMISER, **_START_TRAINER},
                seed=_START_SEED,
                output_dir=str(run),
            )
        )
    return trained


_START_SEED = 1_000_003  # no world that is compared on has it
_START_TRAINER = {"per_device_train_batch_size": 32, "max_steps": 120, "learning_rate": 5e-4, "warmup_steps": 10}
_OFTEN, _SELDOM = 0.85, 0.15  # how often hair is made up where a woman is, and else
_MADE_UP = [hair for hair in HAIR if hair.endswith(" hair")]


def with_habit(name: str, rng: random.Random) -> str:
    """A name with hair that the picture does not show: mostly where it shows a woman. A name that has hair is kept."""
    reading = read_name(name, "People & Body")
    woman = any(who.startswith(("woman", "women")) for who in reading.get("who"))
    if {*reading.get("hair")} - {"default"} or rng.random() >= (_OFTEN if woman else _SELDOM):
        return name
    return f"{name}{', ' if ': ' in name else ': '}{rng.choice(_MADE_UP)}"


def _pair(
    row: Mapping[str, Any],
    texts: Sequence[str],
    regime: Regime,
    wrong: Mapping[str, Sequence[str]],
    known: Mapping[Reading, str],
    seed: int,
) -> dict[str, Any] | None:
    """One preference row as it is written to disk, or None where the sampled names give no pair.

    Random numbers are the row's own, so that regimes that differ in ``easy`` or ``mislabelled`` have the same pairs.
    Pairs of sampled names have no gentle negative, as the chosen name is only better, and mostly not right.
    """
    rng, name = random.Random(f"{seed} {row['id']}"), row["chosen"]
    pair = dict(row)
    if regime.pairs != "drawn":
        different = list(dict.fromkeys(texts))
        if regime.pairs == "corrected":
            choices = [pair for text in different for pair in _corrections(text, name, known)]
        else:
            choices = ordered_pairs([(share_right(text, name), text) for text in different], regime.pairs)
        if not choices:
            return None
        pair = {each: row[each] for each in ("id", "images", "prompt")}
        pair["chosen"], pair["rejected"] = rng.choice(choices)
        pair["kind"] = "sampled"
    is_easy, is_exchanged = rng.random() < regime.easy, rng.random() < regime.mislabelled
    easy = rng.choice(wrong[name] or wrong[_OFF_TOPIC])
    if is_easy:
        pair |= {"rejected": easy, "kind": "easy"}
    elif is_exchanged:
        pair |= {"chosen": pair["rejected"], "rejected": pair["chosen"]}
    return pair


def _corrections(text: str, name: str, known: Mapping[Reading, str]) -> list[tuple[str, str]]:
    """A wrong name with one attribute put right, where that gives a name that some emoji has, beside the wrong one."""
    said = read_name(text, "People & Body")
    changed = {put_right(text, name, attribute) for attribute in ("frame", *ATTRIBUTES)} - {said}
    return sorted((known[reading], text) for reading in changed if reading in known)


_OFF_TOPIC = "off topic"


def _easy_answers(data: Path) -> Mapping[str, Sequence[str]]:
    """Of each name in train.jsonl, the trivially wrong answers of its rows; those that are off topic suit all names."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in _read(data / "train.jsonl"):
        if row["kind"] != "gentle":
            found[row["chosen"]].append(row["rejected"])
        if row["kind"] == _OFF_TOPIC:
            found[_OFF_TOPIC].append(row["rejected"])
    return found


def _known_names(data: Path) -> dict[Reading, str]:
    """The names of all emoji, by what they say of people."""
    names = [row["chosen"] for split in ("pretrain", "train", "eval") for row in _read(data / f"{split}.jsonl")]
    return {read_name(name, "People & Body"): name for name in names}


def _read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of build.py's."""
    if not file.is_file():
        raise UserError(f"there is no {file}. Make it with: make emoji")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _draw(rows: Sequence[dict[str, Any]], count: int, seed: str) -> list[dict[str, Any]]:
    """``count`` rows of different pictures, in random order."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    by_picture = {row["images"][0]: row for row in shuffled}
    if len(by_picture) < count:
        raise UserError(f"there are {len(by_picture)} pictures to draw from, but {count} are asked for. Ask for fewer.")
    return list(by_picture.values())[:count]


def _write(file: Path, rows: Sequence[Mapping[str, Any]], data: Path) -> Path:
    """Write rows with their pictures beside them, and give the file's path."""
    (file.parent / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(data / row["images"][0], file.parent / row["images"][0])
    write_jsonl(file, rows)
    return file
