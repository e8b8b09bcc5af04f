"""Pictures with what each model said about them, ready to stand inside the page."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from cwdpo.report.runs import objects

MOST_ITEMS = 60
"""Pictures shown at most; the notes of the page say how many more there are."""

_MOST_BYTES = 40_000
_SIDE = 320
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's word for a broken PNG chunk
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Answer:
    """What one model said; right is None where nobody judged it."""

    name: str
    text: str
    right: bool | None


@dataclass(frozen=True)
class Item:
    """One picture (a ``data:`` URI, or None where it cannot be shown), its prompt, the right answer, the answers."""

    image: str | None
    small: bool
    """Drawn larger than it is: keep its pixels sharp."""

    prompt: str
    chosen: str
    answers: Sequence[Answer]


def read_gallery(directory: Path, summary: Mapping[str, Any], notes: list[str]) -> list[Item]:
    """The ``gallery`` of a ``summary.json``. Image paths resolve against ``directory`` and may not leave it."""
    entries = objects(summary, "gallery")
    if len(entries) > MOST_ITEMS:
        notes.append(
            f"{directory.name}: {len(entries) - MOST_ITEMS} more pictures are in summary.json than are shown here."
        )
    return [_item(directory, entry, notes) for entry in entries[:MOST_ITEMS]]


def _item(directory: Path, entry: Mapping[str, Any], notes: list[str]) -> Item:
    image, small, name = None, False, entry.get("image")
    if name is not None:
        try:
            image, small = data_uri(directory, str(name))
        except UnidentifiedImageError:
            notes.append(f"{directory.name}: the picture {name!r} is no {', '.join(_TYPES)} file.")
        except UNREADABLE as error:
            notes.append(f"{directory.name}: the picture {name!r} cannot be shown: {error}.")
    answers = [
        Answer(
            str(a.get("name", "?")), str(a.get("text", "")), a["right"] if isinstance(a.get("right"), bool) else None
        )
        for a in objects(entry, "answers")
    ]
    return Item(image, small, str(entry.get("prompt") or ""), str(entry.get("chosen") or ""), answers)


def data_uri(directory: Path, name: str) -> tuple[str, bool]:
    """A picture by its path relative to ``directory``, which it may not leave; see :func:`picture_uri`."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ValueError("its path leaves the run directory")
    if not path.is_file():
        raise ValueError("there is no such file")
    return picture_uri(path)


def picture_uri(source: Path | bytes) -> tuple[str, bool]:
    """A picture as a ``data:`` URI, as it is when it is small, else as a thumbnail, and whether it has few pixels.

    Raises:
        UNREADABLE: not a picture that can be shown.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=list(_TYPES)) as picture:
            kind = str(picture.format)
            small = max(picture.size) <= _SIDE // 2
            length = len(source) if isinstance(source, bytes) else source.stat().st_size
            if length <= _MOST_BYTES and max(picture.size) <= 2 * _SIDE:
                picture.load()
                return _uri(kind, source if isinstance(source, bytes) else source.read_bytes()), small
            picture.thumbnail((_SIDE, _SIDE))
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return _uri("JPEG", buffer.getvalue()), small


def _uri(kind: str, content: bytes) -> str:
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode()}"
