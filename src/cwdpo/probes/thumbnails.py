"""Small copies of a row's pictures, so that what a run shows needs no data set beside it."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cwdpo.data.images import open_image
from cwdpo.data.rows import Row
from cwdpo.records.files import write_bytes

SIDE = 320
"""Most pixels of a side."""

_PNG_BYTES = 2**14
"""Drawings are small as PNG, and exact; where that takes more, the picture is a photograph, and JPEG does."""


def write_thumbnails(rows: Sequence[Row], directory: Path) -> list[list[str]]:
    """Write small copies of all pictures, numbered from ``00`` on.

    Args:
        rows: whose pictures are copied.
        directory: where to; made if it is missing.

    Returns:
        For each row the names of its files.

    Raises:
        DataError: a picture cannot be read.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names: list[list[str]] = []
    number = 0
    for row in rows:
        names.append([])
        for image in row.images:
            suffix, content = thumbnail(open_image(image, source=row.source))
            names[-1].append(f"{number:02d}.{suffix}")
            write_bytes(directory / names[-1][-1], content)
            number += 1
    return names


def thumbnail(image: Image.Image) -> tuple[str, bytes]:
    """A picture of at most :data:`SIDE` pixels a side as a file: its suffix, ``png`` or ``jpg``, and its bytes."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    png = _encoded(small, "PNG", optimize=True)
    return ("png", png) if len(png) <= _PNG_BYTES else ("jpg", _encoded(small, "JPEG", quality=85))


def _encoded(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()
