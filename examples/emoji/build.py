"""Build the emoji data set from Debian's packages: image files, and rows with chosen, gentle and easy answers.

    python examples/emoji/build.py --out examples/emoji/data

Writes ``images/*.png`` and three files of rows whose images are disjoint: ``pretrain.jsonl`` (for base.py),
``train.jsonl`` (preferences: both stages) and ``eval.jsonl`` (held out). The same seed writes the same files.
"""

import argparse
import json
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoji_glyphs import Emoji, draw_emoji, read_emoji, require_packages, square
from emoji_names import Reading, minimal_pairs, read_name
from PIL import Image

from cwdpo.errors import UserError

PROMPTS = ("What does this emoji show?", "Name this emoji.", "Which emoji is this?", "What is in this picture?")
OFF_TOPIC = (
    "the train to the coast leaves at half past nine",
    "please send me the minutes of the last meeting",
    "water boils at a lower temperature in the mountains",
    "my neighbour has painted his fence twice this year",
    "a good recipe for bread needs flour, salt and time",
    "the committee will vote on the budget next week",
)
EASY_KINDS = ("other emoji", "shuffled", "off topic")
FAMILY_SIZE = 6
"""A family (one frame) is split over the three files only if it has this many members."""

EVAL_SHARE, TRAIN_SHARE = 0.18, 0.37
"""Shares of every family's images; the others, and all emoji outside families, are for pretraining."""

EASY_SHARE = 0.7
"""Share of the rejected answers that are easy: the situation in which plain DPO goes wrong."""


@dataclass(frozen=True)
class World:
    """All names, and what can be said of them."""

    readings: dict[str, Reading]
    pairs: dict[str, dict[str, str]]
    """For each name, its minimal pairs with the attribute that differs."""

    def easy(self, name: str, rng: random.Random) -> tuple[str, str]:
        """The kind and the text of an answer that is wrong at first sight."""
        kind = rng.choice(EASY_KINDS)
        if kind == "off topic":
            return kind, rng.choice(OFF_TOPIC)
        words = name.split()
        if kind == "shuffled" and len(set(words)) > 1:
            while " ".join(words) == name:
                rng.shuffle(words)
            return kind, " ".join(words)
        frame = self.readings[name].frame
        names = list(self.readings)
        other = rng.choice(names)
        while self.readings[other].frame == frame:
            other = rng.choice(names)
        return "other emoji", other


def split_names(world: World, rng: random.Random) -> dict[str, list[str]]:
    """``pretrain``, ``train`` and ``eval``, disjoint.

    Only families of people are split: a held-out "woman firefighter: dark skin tone" can be worked out from other
    firefighters, other women and other tones, but nobody can work out the name of a picture that is alone in its kind.
    """
    families: dict[str, list[str]] = defaultdict(list)
    splits: dict[str, list[str]] = {"pretrain": [], "train": [], "eval": []}
    for name, reading in world.readings.items():
        if reading.get("tone") and world.pairs[name]:
            families[reading.frame].append(name)
        else:
            splits["pretrain"].append(name)
    for members in families.values():
        if len(members) < FAMILY_SIZE:
            splits["pretrain"] += members
            continue
        rng.shuffle(members)
        held, train = round(len(members) * EVAL_SHARE), round(len(members) * TRAIN_SHARE)
        splits["eval"] += members[:held]
        splits["train"] += members[held : held + train]
        splits["pretrain"] += members[held + train :]
    return splits


def pretraining_row(name: str, world: World, rng: random.Random) -> dict[str, Any]:
    """A picture and its name."""
    return {"prompt": rng.choice(PROMPTS), "chosen": name}


def preference_row(name: str, world: World, rng: random.Random) -> dict[str, Any]:
    """The right name, a gentle negative, and a rejected answer that is mostly easy."""
    near = sorted(world.pairs[name])
    gentle = rng.choice(near)
    kind, rejected = world.easy(name, rng)
    if rng.random() > EASY_SHARE:
        kind, rejected = "gentle", rng.choice([name for name in near if name != gentle] or near)
    return {
        "prompt": rng.choice(PROMPTS),
        "chosen": name,
        "rejected": rejected,
        "gentle": gentle,
        "kind": kind,
    }


def held_out_row(name: str, world: World, rng: random.Random) -> dict[str, Any]:
    """The right name, a gentle negative, and a rejected answer that is always easy."""
    kind, rejected = world.easy(name, rng)
    gentle = rng.choice(sorted(world.pairs[name]))
    return {"prompt": PROMPTS[0], "chosen": name, "rejected": rejected, "gentle": gentle, "kind": kind}


def write_data(
    out: Path, drawn: Iterable[tuple[Emoji, Image.Image]], *, size: int = 64, rows_per_image: int = 3, seed: int = 0
) -> dict[str, int]:
    """Write images and rows.

    Args:
        out: directory, made if missing; files of the same name are replaced.
        drawn: each emoji with its picture; names must differ.
        size: side of the images in pixels; 136 keeps the font's own pixels.
        rows_per_image: preference rows of each training image, with different negatives.
        seed: of the splits, the prompts and the negatives.

    Returns:
        Counts of images, minimal pairs and rows.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    emoji = {}
    for one, image in drawn:
        square(image, size).save(out / "images" / one.file_name)
        emoji[one.name] = one
    readings = {name: read_name(name, one.group) for name, one in emoji.items()}
    world = World(readings, minimal_pairs(readings))
    counts = {"images": len(emoji), "minimal pairs": sum(map(len, world.pairs.values())) // 2}
    makers = {"pretrain": pretraining_row, "train": preference_row, "eval": held_out_row}
    for split, names in split_names(world, random.Random(seed)).items():
        rng = random.Random(f"{seed} {split}")
        rows: list[dict[str, Any]] = []
        for name in names * (rows_per_image if split == "train" else 1):
            row = {"id": f"{split}-{len(rows):04d}", "images": [f"images/{emoji[name].file_name}"]}
            rows.append(row | makers[split](name, world, rng))
        rng.shuffle(rows)
        write_rows(out / f"{split}.jsonl", rows)
        counts[f"{split} rows"] = len(rows)
        kinds = Counter(row.get("kind", "") for row in rows)
        counts |= {f"{split} rows, rejected: {kind}": number for kind, number in sorted(kinds.items()) if kind}
    return counts


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="where the data set goes")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels; 136 is the font's own")
    parser.add_argument("--rows-per-image", type=int, default=3, help="preference rows of each training image")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        require_packages()
        settings = {"size": args.size, "rows_per_image": args.rows_per_image, "seed": args.seed}
        counts = write_data(args.out, draw_emoji(read_emoji()), **settings)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for what, number in counts.items():
        print(f"{number:6d} {what}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
