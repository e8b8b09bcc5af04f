"""Two answers side by side with what differs between them marked."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TypeAlias

Marked: TypeAlias = list[tuple[str, bool]]
"""A text in pieces, each with whether it differs from the other text."""

_PIECES = re.compile(r"\s+|\w+(?:[-'\u2019]\w+)*|[^\w\s]")
_MOST_PIECES = 600
_LEAST_ALIKE = 0.6


def marked(right: str, wrong: str) -> tuple[Marked, Marked]:
    """Both texts in pieces; unmarked where they have too little in common, or are too long, for marks to help.

    Example:
        >>> marked("a red car", "a blue car")
        ([('a ', False), ('red', True), (' car', False)], [('a ', False), ('blue', True), (' car', False)])
    """
    first, second = _PIECES.findall(right), _PIECES.findall(wrong)
    if max(len(first), len(second)) > _MOST_PIECES:
        return [(right, False)], [(wrong, False)]
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    if matcher.ratio() < _LEAST_ALIKE:
        return [(right, False)], [(wrong, False)]
    ours: Marked = []
    theirs: Marked = []
    for operation, start, end, other_start, other_end in matcher.get_opcodes():
        for pieces, texts in ((ours, first[start:end]), (theirs, second[other_start:other_end])):
            _append(pieces, texts, operation != "equal")
    return ours, theirs


def _append(pieces: Marked, texts: Sequence[str], differs: bool) -> None:
    if texts:
        pieces.append(("".join(texts), differs))
