"""What is right for a prompt: every answer that a data set prefers anywhere for the same prompt and images."""

import itertools
from collections.abc import Hashable, Iterable
from typing import Any, cast

import xxhash

from cwdpo.data.rows import ImageSource, Row


class RightAnswers:
    """Every right answer that a data set gives for a prompt, also those that stand in other rows of the same prompt."""

    def __init__(self, rows: Iterable[Row], also: Iterable[Row] = ()) -> None:
        """Read the rows.

        Args:
            rows: those that negatives are made for.
            also: others of the same data, such as another stage's.
        """
        self._of: dict[Hashable, dict[str, None]] = {}
        for row in itertools.chain(rows, also):
            self._of.setdefault(_question(row), {}).update(dict.fromkeys(_right_in(row)))

    def __call__(self, row: Row) -> list[str]:
        """The right answers to a row's prompt and images, its own first; paraphrases count."""
        return list(dict.fromkeys([*_right_in(row), *self._of.get(_question(row), ())]))


def _right_in(row: Row) -> list[str]:
    """The chosen answer, and its longer and shorter paraphrase."""
    return [text for text in (row.chosen, row.longer, row.shorter) if text]


def _question(row: Row) -> Hashable:
    return row.prompt, tuple(_identity(image) for image in row.images)


def _identity(image: ImageSource) -> Hashable:
    if isinstance(image, bytes):
        return xxhash.xxh3_128_hexdigest(image)
    return str(image) if not hasattr(image, "tobytes") else xxhash.xxh3_128_hexdigest(cast(Any, image).tobytes())
