"""How long rows are, roughly and cheaply: from their texts and the sizes of their images, without encoding them all."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cwdpo.data.rows import ImageSource, Row

_SAMPLE = 24
"""Rows that are encoded to learn what a character and a pixel come to."""


def estimate_lengths(rows: Sequence[Row], count_tokens: Callable[[Row], int]) -> list[int]:
    """Tokens of each row, by a linear rule fitted to a few of them.

        tokens = a + b * characters + c * images + d * pixels

    Good enough to put rows of like length together, and for nothing else: a processor that bounds or rounds the sizes
    of images is no linear rule.

    Args:
        rows: with any texts and images; images are opened for their size alone.
        count_tokens: the exact number of a row's tokens, asked for a few rows only.
    """
    if not rows:
        return []
    facts = np.array([_facts(row) for row in rows], dtype=np.float64)
    by_size = np.lexsort(facts.T)
    sample = by_size[np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
    exact = np.array([count_tokens(rows[i]) for i in sample], dtype=np.float64)
    scale = np.maximum(facts.max(axis=0), 1.0)
    # a little of each coefficient's square keeps what the sample cannot tell apart from growing without bound
    design = np.vstack([facts[sample] / scale, 1e-3 * np.eye(facts.shape[1])])
    rule, *_ = np.linalg.lstsq(design, np.concatenate([exact, np.zeros(facts.shape[1])]), rcond=None)
    found: list[int] = np.maximum(np.rint(facts / scale @ rule), 1).astype(int).tolist()
    return found


def _facts(row: Row) -> tuple[float, ...]:
    """1, characters, images and pixels of a row."""
    texts = [row.chosen, *row.rejected, row.gentle or ""]
    texts += [part for message in row.prompt for part in message.parts if isinstance(part, str)]
    return 1.0, float(sum(map(len, texts))), float(len(row.images)), float(sum(map(_pixels, row.images)))


def _pixels(image: ImageSource) -> int:
    """Width times height, from the file's header; 0 where it cannot be read, which encoding the row will report."""
    try:
        if isinstance(image, Image.Image):
            return image.width * image.height
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            return opened.width * opened.height
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return 0
