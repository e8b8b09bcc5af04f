"""Which negatives to leave out: right answers by accident, other lengths, and those that are too easy."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_WORDS = re.compile(r"[^\W_]+(?:[.,:/]\d+)*")
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a negative must be. None switches a rule off."""

    overlap: float | None = None
    """Drop negatives whose n-gram overlap with a right answer is at least this, in (0, 1]. Not for gentle ones, which
    overlap by design."""

    ngram: int = 3
    """Longest n-gram of the overlap, words."""

    length_gap: float | None = None
    """Drop negatives whose number of words differs from every right answer's by more than this share of it."""

    lbar_floor: float | None = None
    """Drop negatives with lbar below this, nats per token: too easy to teach anything."""


@dataclass(frozen=True)
class Filtered:
    """What was kept, by index, and why the others were not."""

    kept: tuple[int, ...]
    dropped: tuple[tuple[int, str], ...]
    """``(index, reason)``."""

    reasons: Counter[str] = field(default_factory=Counter)


def filter_negatives(
    positives: Sequence[str], negatives: Sequence[str], rules: Rules, *, lbars: Sequence[float | None] | None = None
) -> Filtered:
    """Decide for each negative of a row whether it stays.

    Args:
        positives: the row's right answers, one at least.
        negatives: candidates.
        rules: what to ask of them; exact and normalised matches with a right answer are always dropped, as are
            repetitions, also those that differ in form alone.
        lbars: mean log-probability of each negative, nats per token, None where it was not measured.
    """
    kept: list[int] = []
    dropped: list[tuple[int, str]] = []
    seen: set[str] = set()
    for index, negative in enumerate(negatives):
        lbar = lbars[index] if lbars is not None else None
        reason = _reason(positives, negative, rules, lbar) or ("repeated" if normalised(negative) in seen else None)
        seen.add(normalised(negative))
        if reason is None:
            kept.append(index)
        else:
            dropped.append((index, reason))
    return Filtered(tuple(kept), tuple(dropped), Counter(reason for _, reason in dropped))


def normalised(text: str) -> str:
    """A text with what does not change its meaning taken off: case, punctuation, spaces, forms of characters, articles.

    A text that is nothing but punctuation stays as it is, and a text of articles alone keeps them.

    Example:
        >>> normalised("The dog's  RED ball!") == normalised("a dog's red ball")
        True
        >>> normalised("A") == normalised("B")
        False
    """
    words = _words(text)
    return " ".join([word for word in words if word not in _ARTICLES] or words) or text.strip()


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
    return sum(_f1(_ngrams(first, n), _ngrams(second, n)) for n in lengths) / len(lengths)


def length_gap(positives: Sequence[str], negative: str) -> float:
    """Least difference in words from a right answer, as a share of that answer's words."""
    count = len(_words(negative))
    lengths = [max(len(_words(positive)), 1) for positive in positives]
    return min(abs(count - length) / length for length in lengths)


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share ``q`` of the values lies below, linear in between; the same as numpy's default.

    Raises:
        ValueError: no values, one that is not finite, or q outside [0, 1].
    """
    if not values or not 0 <= q <= 1 or not all(map(math.isfinite, values)):
        raise ValueError(f"cannot take the quantile {q} of {len(values)} values; give finite values and 0 <= q <= 1")
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _reason(positives: Sequence[str], negative: str, rules: Rules, lbar: float | None) -> str | None:
    """Why a negative is left out; None where it stays."""
    if negative in positives:
        return "same_as_right"
    if normalised(negative) in {normalised(positive) for positive in positives}:
        return "right_but_for_form"
    if rules.overlap is not None and any(
        ngram_overlap(positive, negative, rules.ngram) >= rules.overlap for positive in positives
    ):
        return "too_much_like_right"
    if rules.length_gap is not None and length_gap(positives, negative) > rules.length_gap:
        return "other_length"
    if rules.lbar_floor is not None and lbar is not None and lbar < rules.lbar_floor:
        return "too_easy"
    return None


def _words(text: str) -> list[str]:
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _f1(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    return 2 * (one & other).total() / (one.total() + other.total())
