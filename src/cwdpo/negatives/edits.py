"""An edit: the few characters that make an answer wrong, put into the text with everything around it as it was."""

import re
from dataclasses import dataclass
from typing import TypeAlias

from cwdpo.negatives.inflection import indefinite_article
from cwdpo.negatives.reading_text import Reading

_ARTICLE = re.compile(r"(?<![\w'\u2019.-])(an?)(?=\s+$)", re.IGNORECASE)


Span: TypeAlias = tuple[int, int]
"""Characters ``(start, end)``."""


@dataclass(frozen=True, slots=True)
class Part:
    """Characters ``start`` to ``end`` of the original become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One error: one part, or several that change together, in the order of the text."""

    kind: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """An edited text, with what was replaced and what replaced it."""

    text: str
    parts: tuple[tuple[Span, Span], ...]
    """Of each part, the characters of the original and those of the edited text."""


def apply(edit: Edit, reading: Reading) -> Applied:
    """Put an edit into its text; an article before a changed word is changed with it where its sound asks for it."""
    original = reading.text
    parts = [_with_article(part, reading) for part in edit.parts]
    text, end = "", 0
    spans = []
    for part in parts:
        text += original[end : part.start]
        spans.append(((part.start, part.end), (len(text), len(text) + len(part.text))))
        text, end = text + part.text, part.end
    return Applied(text + original[end:], tuple(spans))


def _with_article(part: Part, reading: Reading) -> Part:
    """The part, with the ``a`` or ``an`` before it where that must change."""
    found = _ARTICLE.search(reading.text[: part.start])
    if found is None or not part.text:
        return part
    old = found.group(1)
    word = part.text.lower() if reading.shape == "upper" else part.text
    new = indefinite_article(word)
    if new == old.lower():
        return part
    between = reading.text[found.end(1) : part.start]
    if reading.shape == "upper":
        new = new.upper()
    elif old[0].isupper():
        new = new.capitalize()
    return Part(found.start(1), part.end, new + between + part.text)
