"""The answers of a probe set: what the row gives, and what is made of it to see how the model decides."""

import io
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from PIL import Image

from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Row
from cwdpo.records.lines import PROBE_GROUPS

GROUPS: tuple[str, ...] = PROBE_GROUPS
"""Every answer group, in the order in which readings list them; ``docs/probes.md`` says what each one tells."""

FROM_DATA = ("chosen", "rejected", "gentle", "longer", "shorter")
"""Groups that the data gives. An answer of theirs that does not fit is an error; any other is left out."""

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class ProbeAnswer:
    """One answer to a probe row's prompt."""

    group: str
    text: str
    images: tuple[ImageSource, ...] | None = None
    """Shown in place of the row's own images; None shows the row's own."""


@dataclass(frozen=True)
class ProbeRow:
    """A row and all that is asked about it."""

    index: int
    """Position in the probe set."""

    row: Row
    answers: tuple[ProbeAnswer, ...]


def choose_rows(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """A fixed sample of rows, in their own order; all of them where there are no more than ``number``."""
    if len(rows) <= number:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), number))]


def probe_rows(
    rows: Sequence[Row],
    *,
    groups: Collection[str] = GROUPS,
    seed: int = 0,
    greedy: Sequence[str] | None = None,
    on_policy: Sequence[str] | None = None,
) -> list[ProbeRow]:
    """Make the answers of each row. The same rows, groups and seed always give the same answers.

    A group that a row cannot have (no gentle negative, a one-word answer to shuffle, no image) is left out there.

    Args:
        rows: the probe set.
        groups: the wanted ones of :data:`GROUPS`.
        seed: of the shuffled words and of which other row is taken.
        greedy: the starting model's own answer to each row, or None if there are none.
        on_policy: the same, sampled.
    """
    found = []
    for index, row in enumerate(rows):
        answers = [
            ProbeAnswer("chosen", row.chosen),
            *_given("rejected", row.rejected[0] if row.rejected else None),
            *_given("gentle", row.gentle),
            *_given("longer", row.longer),
            *_given("shorter", row.shorter),
            *_given("greedy", greedy[index] if greedy is not None else None),
            *_given("on_policy", on_policy[index] if on_policy is not None else None),
            *_given("shuffled", shuffled_words(row.chosen, random.Random(f"{seed}:{index}"))),
            *_others(rows, index, seed),
            *_blank(row),
        ]
        found.append(ProbeRow(index, row, tuple(answer for answer in answers if answer.group in groups)))
    return found


def shuffled_words(text: str, rng: random.Random) -> str | None:
    """The words of a text in another order, or None where there is no other order.

    Example:
        >>> shuffled_words("a red disc", random.Random(0))
        'a disc red'
        >>> shuffled_words("red", random.Random(0)) is None
        True
    """
    words = text.split()
    if len(set(words)) < 2:
        return None
    shuffled = list(words)
    while shuffled == words:
        rng.shuffle(shuffled)
    return " ".join(shuffled)


def _given(group: str, text: str | None) -> list[ProbeAnswer]:
    return [] if text is None else [ProbeAnswer(group, text)]


def _others(rows: Sequence[Row], index: int, seed: int) -> list[ProbeAnswer]:
    """Another row's chosen answer to this prompt, and this row's chosen answer under another row's images.

    The other row is the first, a seeded distance further on, that differs in what is exchanged.
    """
    row = rows[index]
    first = random.Random(seed).randrange(len(rows))
    others = [rows[(index + first + step) % len(rows)] for step in range(len(rows))]
    others = [other for other in others if other.chosen != row.chosen]
    pictured = [o for o in others if row.images and len(o.images) == len(row.images) and o.images != row.images]
    return [
        *(ProbeAnswer("other_answer", other.chosen) for other in others[:1]),
        *(ProbeAnswer("other_image", row.chosen, other.images) for other in pictured[:1]),
    ]


def _blank(row: Row) -> list[ProbeAnswer]:
    """The chosen answer under grey images of the same sizes, as files in memory: a grey PNG takes little."""
    if not row.images:
        return []
    sizes = map(partial(_size, source=row.source), row.images)
    return [ProbeAnswer("blank", row.chosen, tuple(grey_image(width, height) for width, height in sizes))]


def grey_image(width: int, height: int) -> bytes:
    """A PNG of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), _GREY).save(file, format="PNG")
    return file.getvalue()


def _size(image: ImageSource, *, source: str) -> tuple[int, int]:
    return open_image(image, source=source).size
