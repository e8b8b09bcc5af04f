"""Caption metrics against one or several references: BLEU-1 to 4, ROUGE-L and CIDEr-D, and the words they count.

They equal those of ``pycocoevalcap`` 1.2, which evaluates COCO captions, on the same words. METEOR and SPICE need Java
programs and are not offered.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = Sequence[str]
Ngram: TypeAlias = tuple[str, ...]

LONGEST = 4
"""Of the n-grams that BLEU and CIDEr-D count."""

_TINY, _SMALL = 1e-15, 1e-9
"""What COCO's BLEU adds to matches and to n-grams, so that nothing is divided by zero."""

_BETA = 1.2
"""How much more recall counts than precision in COCO's ROUGE-L."""

_SIGMA = 6.0
"""Of CIDEr-D's penalty for another length, in words."""

_CLITIC = r"(?:'(?:s|m|d|re|ve|ll)|n't)(?![a-z0-9])"
_TOKEN = re.compile(
    rf"""{_CLITIC}
    | [a-z]\.(?:[a-z]\.)+                                   # u.s.
    | (?:mr|mrs|ms|dr|st|vs|jr|sr|prof|etc)\.(?=\s|$)       # abbreviations keep their dot
    | \d+(?:[.,:]\d+)*(?:[^\W\d_]+)?(?:-[^\W_]+)*           # 1,200  3.5  12:30  5th  3-year-old
    | (?:(?!n't)[^\W_])+(?:[-_](?:(?!n't)[^\W_])+)*           # black-and-white
    | [^\s\w]                                              # signs
    """,
    re.VERBOSE,
)
_SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na")}
_DROPPED = frozenset("'`.?!,:;-()[]{}\"")
_SAME_SIGN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


def caption_words(text: str) -> list[str]:
    """The words of a caption as the Penn Treebank tokenizer of COCO's evaluation gives them: in small letters, without
    punctuation, clitics apart (``it 's``, ``do n't``), hyphenated words whole.

    It is written from scratch in Python, so rare signs and abbreviations can differ from the Java program. Brackets are
    dropped, which COCO's evaluation means to do and does not (there they become ``-lrb-``).

    Example:
        >>> caption_words("It's a black-and-white dog; the dog can't see 2.5 cats.")
        ['it', "'s", 'a', 'black-and-white', 'dog', 'the', 'dog', 'ca', "n't", 'see', '2.5', 'cats']
    """
    plain = unicodedata.normalize("NFC", text).translate(_SAME_SIGN).lower()
    found = [token for token in _TOKEN.findall(plain) if token not in _DROPPED]
    return [part for token in found for part in _SPLIT.get(token, (token,))]


def ngrams(words: Words, n: int) -> Counter[Ngram]:
    """How often each run of ``n`` words occurs.

    Example:
        >>> ngrams(["a", "b", "a"], 2)
        Counter({('a', 'b'): 1, ('b', 'a'): 1})
    """
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu_sums(answer: Words, references: Sequence[Words]) -> NDArray[np.float64]:
    """What corpus BLEU sums over rows, :func:`bleu` makes of the sums: ``(10,)``.

    Matches of 1- to 4-grams, each counted at most as often as in the reference that has it most often; the answer's
    n-grams of each length; the answer's words; and the words of the reference closest in length (of two equally close
    the shorter).
    """
    matches, counts = [], []
    for n in range(1, LONGEST + 1):
        own = ngrams(answer, n)
        most: Counter[Ngram] = Counter()
        for reference in references:
            most |= ngrams(reference, n)
        matches.append((own & most).total())
        counts.append(own.total())
    closest = min((abs(len(reference) - len(answer)), len(reference)) for reference in references)[1]
    return np.array([*matches, *counts, len(answer), closest], dtype=np.float64)


def bleu(sums: NDArray[np.float64], longest: int = LONGEST) -> NDArray[np.float64]:
    r"""Corpus BLEU (Papineni et al., ACL 2002), from 0 to 1.

        BLEU-N = min(1, exp(1 - r/c)) * (prod_{n <= N} matches_n / ngrams_n)^(1/N)

    c and r are the words of the answers and of the references closest in length.

    Args:
        sums: ``(..., 10)`` of :func:`bleu_sums`, summed over rows.
        longest: N.

    Returns:
        ``(...)``
    """
    matches, counts = sums[..., :longest], sums[..., LONGEST : LONGEST + longest]
    precision = ((matches + _TINY) / (counts + _SMALL)).prod(axis=-1) ** (1 / longest)
    ratio = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    found: NDArray[np.float64] = precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return found


def rouge_l(answer: Words, references: Sequence[Words]) -> float:
    r"""ROUGE-L (Lin, 2004) as COCO computes it, from 0 to 1.

        F = (1 + beta^2) P R / (R + beta^2 P),   beta = 1.2

    P and R are the longest common subsequence over the words of the answer and of the reference, each the highest that
    any reference gives.
    """
    if not answer:
        return 0.0
    common = [(_common_subsequence(answer, reference), len(reference)) for reference in references if reference]
    precision = max((length / len(answer) for length, _ in common), default=0.0)
    recall = max((length / size for length, size in common), default=0.0)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def cider_d(answers: Sequence[Words], references: Sequence[Sequence[Words]]) -> NDArray[np.float64]:
    r"""CIDEr-D (Vedantam et al., CVPR 2015) of every row, from 0 to 10; its mean is the corpus's score.

        CIDEr-D = 10 mean_{n, references} exp(-(l_c - l_r)^2 / (2 * 6^2)) min(g_c, g_r) . g_r / (|g_c| |g_r|)

    g are the counts of n-grams times log(rows / rows with the n-gram in a reference), n from 1 to 4; l are lengths.
    Rare n-grams count most, and rarity is measured on these rows: the number cannot be compared with that of other
    rows, and with a single row it is 0.

    Returns:
        ``(rows,)``
    """
    having: Counter[Ngram] = Counter()
    for texts in references:
        having.update({gram for text in texts for n in range(1, LONGEST + 1) for gram in ngrams(text, n)})
    log_rows = np.log(len(references))

    def weighted(words: Words, n: int) -> dict[Ngram, float]:
        return {gram: count * (log_rows - np.log(max(1, having[gram]))) for gram, count in ngrams(words, n).items()}

    scores = []
    for answer, texts in zip(answers, references, strict=True):
        own = [weighted(answer, n) for n in range(1, LONGEST + 1)]
        total = 0.0
        for text in texts:
            # COCO's program takes the number of 2-grams as the length
            gap = max(len(answer) - 1, 0) - max(len(text) - 1, 0)
            alike = sum(_clipped_cosine(mine, weighted(text, n)) for n, mine in enumerate(own, start=1))
            total += float(np.exp(-(gap**2) / (2 * _SIGMA**2))) * alike
        scores.append(10 * total / (LONGEST * len(texts)))
    return np.array(scores, dtype=np.float64)


def _clipped_cosine(answer: dict[Ngram, float], reference: dict[Ngram, float]) -> float:
    """Cosine of two vectors, of which the first is cut to the second in the product alone."""
    product = sum(min(value, reference[gram]) * reference[gram] for gram, value in answer.items() if gram in reference)
    norms = np.sqrt(sum(v**2 for v in answer.values())) * np.sqrt(sum(v**2 for v in reference.values()))
    return float(product / norms) if norms else float(product)


def _common_subsequence(one: Words, other: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for j, theirs in enumerate(other, start=1):
            row.append(before[j - 1] + 1 if word == theirs else max(before[j], row[j - 1]))
    return row[-1]
