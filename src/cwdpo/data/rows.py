"""A row: one prompt with its images and its answers, in the one form that the rest of the package knows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar, dataclass_transform

from PIL import Image


class Table(Protocol):
    """Rows on disk that can be read one at a time."""

    def value(self, row: int, column: str) -> Any:
        """What a row, counted from 0, has in a column."""
        ...


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image inside a table on disk: where it lies. Held as bytes, those of a data set would fill memory."""

    table: Table
    row: int
    path: tuple[str | int, ...]
    """The column, and what leads to the bytes in it: ``("images", 0, "bytes")``."""

    def read(self) -> bytes:
        column, *inner = self.path
        value = self.table.value(self.row, str(column))
        for key in inner:
            value = value[key]
        found: bytes = value
        return found


ImageSource: TypeAlias = Path | bytes | StoredImage | Image.Image
"""An image as a file on disk, as encoded bytes, inside a table on disk (parquet) or already decoded (a ``datasets``
Image column)."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where an image stands in a message; slots take the row's images in order."""


_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def _value(kind: type[_Class]) -> type[_Class]:
    """A dataclass that nobody may change, which mypy checks: Python's own check would make each object take three times
    as long, and a data set has a million."""
    return dataclass(slots=True, unsafe_hash=True)(kind)


@_value
class Message:
    """One turn of a conversation: text and image slots in reading order."""

    role: str
    """``system``, ``user`` or ``assistant``."""

    parts: tuple[str | ImageSlot, ...]

    reasoning: str | None = None
    """What an assistant thought before this turn (``reasoning_content``), for a template that has a place for it."""


@_value
class Row:
    """One prompt and its answers. Image slots in the prompt are exactly as many as the images."""

    prompt: tuple[Message, ...]
    """The conversation up to, and not including, the answer."""

    chosen: str
    """The preferred answer (y_w)."""

    rejected: tuple[str, ...] = ()
    """Dispreferred answers (y_l): the row's ``rejected`` first, then its ``negatives``. Empty for stage-1 data."""

    gentle: str | None = None
    """An answer with one minor error, for stage 1 and for the cooling floor."""

    longer: str | None = None
    """A longer paraphrase of the chosen answer, for probes alone."""

    shorter: str | None = None
    """A shorter one."""

    images: tuple[ImageSource, ...] = ()

    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Values for the chat template (``chat_template_kwargs``), such as ``{"enable_thinking": False}``."""

    has_reasoning: bool = False
    """Whether a message or an answer came with ``reasoning_content``, which the chat template must then take. In an
    answer it stands before the text, as :func:`join_reasoning` writes it."""

    kind: str | None = None
    """What sort of negative the row holds, as the data set says it."""

    id: str = ""
    source: str = field(default="", compare=False)
    """Where the row came from, ``file:line``, for messages."""

    @property
    def thinks(self) -> bool:
        """Whether any answer begins with reasoning."""
        given = (self.chosen, *self.rejected, self.gentle, self.longer, self.shorter)
        return any(split_reasoning(answer)[0] is not None for answer in given if answer is not None)


_REASONING = re.compile(r"\A\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


def join_reasoning(reasoning: str, text: str) -> str:
    """An answer with the reasoning before it, as one text; templates write it in their own way.

    Example:
        >>> join_reasoning("Warm, so red.", "Red.")
        '<think>\\nWarm, so red.\\n</think>\\n\\nRed.'
    """
    return f"<think>\n{reasoning}\n</think>\n\n{text}"


def split_reasoning(answer: str) -> tuple[str | None, str]:
    """The reasoning that an answer begins with, or None, and the text after it.

    Example:
        >>> split_reasoning("<think>\\nWarm, so red.\\n</think>\\n\\nRed."), split_reasoning("Red.")
        (('Warm, so red.', 'Red.'), (None, 'Red.'))
    """
    found = _REASONING.match(answer)
    return (found[1], answer[found.end() :]) if found else (None, answer)
