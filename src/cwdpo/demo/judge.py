"""The demo's judge of sampled captions: the exact checker, in the form that ``negatives: {judge: ...}`` takes."""

import functools
from collections.abc import Sequence
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.demo.checker import check_caption
from cwdpo.demo.scenes import Scene
from cwdpo.demo.world import read_scenes


def right_captions(rows: Sequence[Row], captions: Sequence[str]) -> list[bool]:
    """Whether each caption is exactly right; the truth lies beside the world's image directory."""
    return [
        check_caption(caption, _scenes(_truth(row))[row.id]).exact for row, caption in zip(rows, captions, strict=True)
    ]


def _truth(row: Row) -> Path:
    image = row.images[0]
    assert isinstance(image, Path), "the demo's world is made of files"
    return image.parent.parent / "scenes.json"


@functools.lru_cache(maxsize=4)
def _scenes(path: Path) -> dict[str, Scene]:
    return read_scenes(path)
