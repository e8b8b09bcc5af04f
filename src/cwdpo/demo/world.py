"""Write the demo's world to disk: image files, rows and ground truth, as a user's own data would lie there."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwdpo.demo.captions import Style, sample_style, write_caption
from cwdpo.demo.negatives import EASY_KINDS, Kind, easy_negative, gentle_negative
from cwdpo.demo.scenes import Scene, Thing, draw_scene, sample_scene

PROMPT = "describe the picture"
"""The one instruction of the demo."""

EASY_SHARE = 0.7
"""Share of rejected captions that are easy: the situation in which plain DPO goes wrong."""


@dataclass(frozen=True, slots=True)
class WorldPaths:
    """Where the world lies."""

    train: Path
    """Rows to train on."""

    eval: Path
    """Rows held out."""

    scenes: Path
    """Ground truth: a JSON object from row id to the list of things in the picture."""

    images: Path
    """Directory of the PNG files."""


def write_world(directory: Path, *, seed: int, train: int, eval: int) -> WorldPaths:
    """Draw pictures, write captions and negatives, and put all of it on disk.

    Args:
        directory: made if missing; files of the same name are replaced.
        seed: everything random follows from it; the two splits are drawn independently of each other's size.
        train: number of rows to train on.
        eval: number of held-out rows.
    """
    paths = WorldPaths(
        train=directory / "train.jsonl",
        eval=directory / "eval.jsonl",
        scenes=directory / "scenes.json",
        images=directory / "images",
    )
    paths.images.mkdir(parents=True, exist_ok=True)
    truth: dict[str, list[dict[str, str]]] = {}
    for split, (path, count) in enumerate(((paths.train, train), (paths.eval, eval))):
        rng = np.random.default_rng([seed, split])
        rows = []
        for number in range(count):
            scene = sample_scene(rng)
            row = make_row(f"{path.stem}-{number:05d}", scene, rng)
            draw_scene(scene, rng).save(directory / row["images"][0], compress_level=1)
            truth[row["id"]] = [asdict(thing) for thing in scene]
            rows.append(row)
        _write_jsonl(path, rows)
    paths.scenes.write_text(json.dumps(truth), encoding="utf-8")
    return paths


def make_row(row_id: str, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """One preference row: a right caption, a rejected one that is mostly easy, and a gentle one."""
    style = sample_style(scene, rng)
    chosen = write_caption(scene, style)
    kind, rejected = _rejected(scene, style, chosen, rng)
    return {
        "id": row_id,
        "images": [f"images/{row_id}.png"],
        "prompt": [{"role": "user", "content": PROMPT}],
        "chosen": chosen,
        "rejected": rejected,
        "gentle": gentle_negative(scene, style, rng),
        "kind": kind,
    }


def read_scenes(path: Path) -> dict[str, Scene]:
    """Read the ground truth that :func:`write_world` wrote, by row id."""
    truth = json.loads(path.read_text(encoding="utf-8"))
    return {row_id: tuple(Thing(**thing) for thing in things) for row_id, things in truth.items()}


def _rejected(scene: Scene, style: Style, chosen: str, rng: np.random.Generator) -> tuple[Kind, str]:
    if rng.random() >= EASY_SHARE:
        return "gentle", gentle_negative(scene, style, rng)
    kind = EASY_KINDS[int(rng.integers(len(EASY_KINDS)))]
    return kind, easy_negative(kind, scene, chosen, rng)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
