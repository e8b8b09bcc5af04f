"""A row: one prompt with its images and its answers, in the one form that the rest of the package knows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from PIL import Image

ImageSource: TypeAlias = Path | bytes | Image.Image
"""An image as a file on disk, as encoded bytes (parquet) or already decoded (a ``datasets`` Image column)."""


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """Where an image stands in a message; slots take the row's images in order."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: text and image slots in reading order."""

    role: str
    """``system``, ``user`` or ``assistant``."""

    parts: tuple[str | ImageSlot, ...]


@dataclass(frozen=True, slots=True)
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
    kind: str | None = None
    """What sort of negative the row holds, as the data set says it."""

    id: str = ""
    source: str = field(default="", compare=False)
    """Where the row came from, ``file:line``, for messages."""
