"""Emoji of people for the pretrained model: preference rows of a seed, and what a model says of held-out pictures.

``cwdpo compare grid.yaml`` calls :func:`make` for each seed and :func:`measure` for each model.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from cwdpo.compare.grid import Outcome
from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError
from cwdpo.evaluation.measuring import measure_model
from cwdpo.evaluation.questions import Question
from cwdpo.generation import generate_answers
from cwdpo.metrics import token_ece
from cwdpo.models.adapters import load_checkpoint
from cwdpo.records import write_json, write_text
from examples.emoji.emoji_names import judge

HERE = Path(__file__).parent
PROMPT = "What is this?"
ANSWERS = "answers.json"
"""What a model said of the held-out pictures: in its run's directory; the start's beside the rows."""

_LONGEST = 30  # tokens; the longest name has about 25
_LIKELIHOOD_ROWS = 32
_SAMPLES = 4


def make(
    directory: Path,
    *,
    seed: int,
    starts: Path,
    train: int = 128,
    held_out: int = 96,
    own: bool = False,
    base: str = str(HERE / "base"),
    emoji: str = str(HERE / "data" / "emoji"),
) -> dict[str, str]:
    """Choose a seed's pictures and write its rows, as ``cwdpo compare`` calls it; gives the recipe's settings.

    Args:
        directory: of this seed; its pictures are copied there.
        seed: of the choice.
        starts: not used: all seeds share one start.
        train: rows to train on, of different pictures: a name, a gentle negative, a mostly easy rejected answer.
        held_out: rows to measure on, whose rejected answer is always easy.
        own: train on two of the start's own answers to each picture, see :func:`own_pairs`; a picture whose answers are
            alike gives no row.
        base: the checkpoint that build.py made.
        emoji: the pictures and rows that build.py made.
    """
    if not (Path(base) / "config.json").is_file():
        raise UserError(f"{base} holds no model. Make it with: python -m examples.pretrained.build")
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("eval", held_out)):
        rows = _choose(Path(emoji) / f"{split}.jsonl", count, random.Random(f"{seed} {split}"))
        for row in rows:
            shutil.copyfile(Path(emoji) / row["images"][0], directory / row["images"][0])
        if own and split == "train":
            rows = own_pairs(rows, directory, base=base, seed=seed)
        write_text(directory / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {
        "model.name_or_path": base,
        "data.train": str(directory / "train.jsonl"),
        "data.eval": str(directory / "eval.jsonl"),
    }


def _choose(file: Path, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """``count`` rows of different pictures whose name says a skin tone, all with the same prompt."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rng.shuffle(rows)
    by_picture = {row["images"][0]: row | {"prompt": PROMPT} for row in rows if "skin tone" in row["chosen"]}
    if len(by_picture) < count:
        raise UserError(f"{file} has {len(by_picture)} pictures of people, but {count} are asked for. Ask for fewer.")
    return list(by_picture.values())[:count]


def own_pairs(rows: Sequence[dict[str, Any]], directory: Path, *, base: str, seed: int) -> list[dict[str, Any]]:
    """Rows whose chosen and rejected answers are two of :data:`_SAMPLES` that the model samples for the picture: the
    first two whose scores differ, which is how many of ``exact``, ``tone`` and ``who`` are right. They have no gentle
    negative, as the chosen answer is only better, and mostly not right."""
    asked = directory / "asked.jsonl"
    write_text(asked, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    policy, processor = load_checkpoint(base)
    repeated = [row for row in read_rows(asked) for _ in range(_SAMPLES)]
    said = generate_answers(
        policy, processor, repeated, max_new_tokens=_LONGEST, temperature=1.0, seed=seed, warn_of_cut=False
    )
    scores = [sum(each) for each in zip(*judge(said, [row.chosen for row in repeated]).values(), strict=True)]
    pairs = []
    for place, row in enumerate(rows):
        answers = list(zip(scores, said, strict=True))[place * _SAMPLES : (place + 1) * _SAMPLES]
        (score, text), *others = answers
        other = next((each for each in others if each[0] != score and each[1].strip() and text.strip()), None)
        if other is not None:
            (_, rejected), (_, chosen) = sorted([(score, text), other])
            kept = {name: row[name] for name in ("id", "images", "prompt") if name in row}
            pairs.append(kept | {"chosen": chosen, "rejected": rejected})
    return pairs


def measure(model: Path, *, start: Path, eval_rows: Path, seed: int) -> Outcome:
    """Let a model name the held-out pictures greedily, and compare with their names.

    Of each picture, 0 or 1: ``exact``, ``tone`` and ``who``, see :func:`examples.emoji.emoji_names.judge`. Of some of
    them: ``ece`` over the tokens of right names, and the mean log-probs of right names, of names that differ in one
    attribute, and of texts that are wrong at first sight (``chosen``, ``gentle``, ``easy``; nats per token). The
    answers are kept in :data:`ANSWERS`.
    """
    rows = read_rows(eval_rows)
    policy, processor = load_checkpoint(str(model))
    said = generate_answers(policy, processor, rows, max_new_tokens=_LONGEST, warn_of_cut=False)
    write_json((eval_rows if model == start else model).with_name(ANSWERS), said)
    values = judge(said, [row.chosen for row in rows])
    questions = [Question(row, (row.chosen,)) for row in rows[:_LIKELIHOOD_ROWS]]
    found = measure_model(policy, processor, questions, max_new_tokens=None)
    confidence, hit = (torch.from_numpy(np.concatenate(each)) for each in (found.confidence, found.hit))
    numbers = {
        "chosen": fmean(answer.mean for answer in found.chosen),
        "gentle": fmean(answer.mean for answer in found.gentle if answer is not None),
        "easy": fmean(answer.mean for answers in found.rejected for answer in answers),
        "ece": token_ece(confidence, hit).item(),
    }
    return Outcome({name: [float(right) for right in each] for name, each in values.items()}, numbers)
