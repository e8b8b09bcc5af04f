"""The demo's judges of sampled captions, in the form that ``negatives: {judge: ...}`` takes.

:func:`right_captions` and :func:`as_good_as_chosen` know what is in the picture. The two others know the row's right
caption alone, as a rule-based judge of a user's own data would: they show how far words go without the truth.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.demo.world import SYNONYMS, Scene, check_caption, read_scenes

_FUNCTION_WORDS = frozenset({"a", "at", "is", "the", "there"})
_ONE_WORD_FOR = {
    synonym: synonyms[0] for values in SYNONYMS.values() for synonyms in values.values() for synonym in synonyms
}


def right_captions(rows: Sequence[Row], captions: Sequence[str]) -> list[bool]:
    """Whether each caption is exactly right; the truth lies beside the world's image directory."""
    return [check_caption(caption, _scene(row)).exact for row, caption in zip(rows, captions, strict=True)]


def as_good_as_chosen(rows: Sequence[Row], captions: Sequence[str]) -> list[bool]:
    """Whether each caption is no worse than its row's chosen one, which need not be right itself."""
    return [better_caption(row, caption, row.chosen) >= 0 for row, caption in zip(rows, captions, strict=True)]


def better_caption(row: Row, first: str, second: str) -> int:
    """Which caption is better, in the form that ``cwdpo judge --judge`` takes: 1 the first, -1 the second, 0 a tie.
    Exact beats inexact, else the one with more right attributes, as in :func:`cwdpo.demo.world.win_rate`."""
    scene = _scene(row)
    ours, theirs = (check_caption(text, scene)[:2] for text in (first, second))
    return (ours > theirs) - (ours < theirs)


def same_clauses(rows: Sequence[Row], captions: Sequence[str]) -> list[bool]:
    """Whether each caption has the clauses of its row's right one, whatever the order of clauses and words in them."""
    return [_clauses(row.chosen, {}) == _clauses(text, {}) for row, text in zip(rows, captions, strict=True)]


def same_meanings(rows: Sequence[Row], captions: Sequence[str]) -> list[bool]:
    """As :func:`same_clauses`, with every word's synonyms taken for the word."""
    return [
        _clauses(row.chosen, _ONE_WORD_FOR) == _clauses(text, _ONE_WORD_FOR)
        for row, text in zip(rows, captions, strict=True)
    ]


def _clauses(caption: str, one_word_for: Mapping[str, str]) -> Counter[tuple[str, ...]]:
    """The content of a caption: for each clause its content words, sorted.

    Example:
        >>> _clauses("at the upper left there is a tiny disc", {"upper left": "top left", "tiny": "small"})
        Counter({('disc', 'left', 'small', 'top'): 1})
    """
    text = " ".join(caption.lower().split()).rstrip(".")
    for synonym, word in sorted(one_word_for.items()):
        text = re.sub(rf"\b{synonym}\b", word, text)
    return Counter(tuple(sorted(set(clause.split()) - _FUNCTION_WORDS)) for clause in text.split(" and "))


def _scene(row: Row) -> Scene:
    """What is in a row's picture."""
    image = row.images[0]
    assert isinstance(image, Path), "the demo's world is made of files"
    return _scenes(image.parent.parent / "scenes.json")[row.id]


@functools.lru_cache(maxsize=4)
def _scenes(path: Path) -> dict[str, Scene]:
    return read_scenes(path)
