"""Which negatives to leave out: right answers by accident, repetitions, other lengths, too easy or too similar ones.
Rules on texts and measured numbers; :mod:`cwdpo.negatives.hardness` measures them."""

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cwdpo.data.images import image_identity
from cwdpo.data.rows import Row

TOO_EASY, TOO_SIMILAR = "too_easy", "too_similar"

Reason: TypeAlias = str | None
"""Why a negative is left out; None where it stays."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the text of a negative must be. None switches a rule off."""

    overlap: float | None = None
    """Drop negatives whose n-gram overlap with a right answer is at least this, in (0, 1]. Not for gentle ones, which
    overlap by design."""

    ngram: int = 3
    """Longest n-gram of the overlap, words."""

    length_gap: float | None = None
    """Drop negatives whose number of words differs from every right answer's by more than this share of it."""


def filter_negatives(positives: Sequence[str], negatives: Sequence[str], rules: Rules) -> list[Reason]:
    """Why each negative of a row goes: ``same_as_right``, ``right_but_for_form``, ``too_much_like_right``,
    ``other_length`` or ``repeated``; None where it stays.

    Exact and normalised matches with a right answer, of which there is one at least, are always dropped, and so are
    repetitions, also those that differ in form alone.
    """
    right, seen = {normalised(positive) for positive in positives}, set[str]()
    reasons: list[Reason] = []
    for negative in negatives:
        form = normalised(negative)
        reason: Reason = None
        if negative in positives:
            reason = "same_as_right"
        elif form in right:
            reason = "right_but_for_form"
        elif rules.overlap is not None and any(
            ngram_overlap(positive, negative, rules.ngram) >= rules.overlap for positive in positives
        ):
            reason = "too_much_like_right"
        elif rules.length_gap is not None and length_gap(positives, negative) > rules.length_gap:
            reason = "other_length"
        elif form in seen:
            reason = "repeated"
        seen.add(form)
        reasons.append(reason)
    return reasons


@dataclass(frozen=True, slots=True)
class Hardness:
    """Of one negative, as a model sees it."""

    lbar: float
    """Mean log-prob, nats per token."""

    ches: float
    """Length-normalised CHES similarity to the right answer."""


def hardness_reason(
    *, lbar: float | None = None, floor: float | None = None, ches: float | None = None, ceiling: float | None = None
) -> Reason:
    """Why a negative of this hardness is left out; a limit that is None, or was not measured, drops nothing.

    Below the floor of lbar, nats per token, a negative is too easy to teach anything. Above the ceiling of CHES,
    pushing it down drags the right answer along.

    Example:
        >>> hardness_reason(lbar=-3.0, floor=-2.0), hardness_reason(lbar=-2.0, floor=-2.0)
        ('too_easy', None)
    """
    if lbar is not None and floor is not None and lbar < floor:
        return TOO_EASY
    if ches is not None and ceiling is not None and ches > ceiling:
        return TOO_SIMILAR
    return None


def threshold(values: Sequence[float], rule: float | str) -> float:
    """A number as it is, or ``quantile:q`` of the values.

    Example:
        >>> threshold([-3.0, -1.0, -2.0], "quantile:0.5"), threshold([-3.0], -1.5)
        (-2.0, -1.5)
    """
    return quantile(values, float(rule.partition(":")[2])) if isinstance(rule, str) else float(rule)


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share ``q`` of the values lies below, linear in between; the same as numpy's default."""
    if not values or not 0 <= q <= 1 or not all(map(math.isfinite, values)):
        raise ValueError(f"cannot take the quantile {q} of {len(values)} values; give finite values and 0 <= q <= 1")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class RightAnswers:
    """Every right answer that a data set gives for a prompt, also those that stand in other rows of the same prompt."""

    def __init__(self, rows: Iterable[Row], also: Iterable[Row] = ()) -> None:
        """Negatives are made for ``rows``; ``also`` are others of the same data, such as another stage's."""
        self._of: dict[Hashable, dict[str, None]] = {}
        for row in itertools.chain(rows, also):
            self._of.setdefault(_question(row), {}).update(dict.fromkeys(_right_in(row)))

    def __call__(self, row: Row) -> list[str]:
        """The right answers to a row's prompt and images, its own first; paraphrases count."""
        return list(dict.fromkeys([*_right_in(row), *self._of.get(_question(row), ())]))


def normalised(text: str) -> str:
    """A text without what does not change its meaning: case, punctuation, spaces, forms of characters, articles.

    A text that is nothing but punctuation stays as it is, and a text of articles alone keeps them.

    Example:
        >>> normalised("The dog's  RED ball!") == normalised("a dog's red ball")
        True
        >>> normalised("A") == normalised("B")
        False
    """
    words = _words(text)
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words) or text.strip()


def ngram_overlap(one: str, other: str, longest: int = 3) -> float:
    """Mean over n = 1 to ``longest`` of the F1 of word n-grams, from 0 (no word in common) to 1 (the same words).

    For texts shorter than n words, only the lengths that both have count.

    Example:
        >>> ngram_overlap("a red dog", "a red dog"), ngram_overlap("a red dog", "two blue cats")
        (1.0, 0.0)
    """
    first, second = _words(one), _words(other)
    lengths = range(1, min(longest, len(first), len(second)) + 1)
    if not lengths:
        return float(first == second)
    shares = []
    for n in lengths:
        one_has, other_has = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (first, second))
        shares.append(2 * (one_has & other_has).total() / (one_has.total() + other_has.total()))
    return sum(shares) / len(shares)


def length_gap(positives: Sequence[str], negative: str) -> float:
    """Least difference in words from a right answer, as a share of that answer's words."""
    count = len(_words(negative))
    lengths = [max(len(_words(positive)), 1) for positive in positives]
    return min(abs(count - length) / length for length in lengths)


_WORDS = re.compile(r"[^\W_]+(?:[.,:/]\d+)*")


def _words(text: str) -> list[str]:
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def _right_in(row: Row) -> list[str]:
    return [text for text in (row.chosen, row.longer, row.shorter) if text]


def _question(row: Row) -> Hashable:
    return row.prompt, tuple(image_identity(image, source=row.source) for image in row.images)
