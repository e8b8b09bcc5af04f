"""How far shortcuts get on preference pairs: what separates chosen from rejected answers without a look at the image.

From the texts alone, without a model or torch. A *clue* is a property of the text that is more frequent on one side: a
word, a length, a repetition. A policy can learn it instead of the image. :mod:`cwdpo.evaluation.audit.blind` has the
shortcuts that need a model.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cwdpo.data.rows import Row
from cwdpo.errors import DataError
from cwdpo.evaluation.intervals import Estimate, wilson

MUCH = 0.65
"""A shortcut whose interval lies above this share of pairs gets a warning."""

CLEAR = 4.0
"""Standard errors from an even split at which a single feature is listed: of a few thousand features, chance passes one
in about fifteen audits."""

MOST_ROWS = 5000
_MOST_FEATURES = 1500
_FEWEST_PAIRS = 3  # a feature that fewer pairs differ in cannot be learned from other rows
_FOLDS = 5
_RIDGE = 1.0

Features = Mapping[str, float]
"""What an answer has, and how much of it."""


class Pairs:
    """The pairs of some rows: each row's chosen answer with each of its rejected ones."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = [row for row in rows if row.rejected]
        if not self.rows:
            raise DataError("no row has a rejected answer, so there are no pairs to audit. Give rows with `rejected`.")
        self.texts = [(row.chosen, rejected) for row in self.rows for rejected in row.rejected]
        self.owner = np.array([number for number, row in enumerate(self.rows) for _ in row.rejected])

    def share(self, points: NDArray[np.float64]) -> Estimate:
        """Mean over rows of the points that their pairs got, with Wilson's interval for that many rows.

        Args:
            points: ``(pairs,)`` 1 where a rule prefers the chosen answer, 0 the rejected one, 0.5 neither.
        """
        means = np.bincount(self.owner, weights=points) / np.bincount(self.owner)
        return wilson(min(float(means.sum()), len(means)), len(means))


@dataclass(frozen=True)
class Shortcut:
    """A rule that looks at no image, and the share of pairs in which it prefers the chosen answer; ties count half."""

    name: str
    won: Estimate


@dataclass(frozen=True)
class Separation:
    """How well one family of features separates chosen from rejected answers of rows that it was not fitted on."""

    family: str
    accuracy: Estimate


@dataclass(frozen=True)
class Clue:
    """One feature that is clearly more frequent on one side."""

    family: str
    feature: str
    in_chosen: float
    in_rejected: float
    """Share of the answers that have it."""

    more_in_chosen: int
    more_in_rejected: int
    """Pairs in which one side has more of it."""


@dataclass(frozen=True)
class Warned:
    """A shortcut that gets too far, the numbers that show it, and what to do with the data."""

    name: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    rows: int
    pairs: int
    shortcuts: list[Shortcut]
    separations: list[Separation]
    """Every family, and all of them together; empty where there are too few different chosen answers."""

    clues: list[Clue]
    """Clearest first."""

    warnings: list[Warned]


def audit_texts(
    rows: Sequence[Row], *, count_tokens: Callable[[str], int] | None = None, seed: int = 0, shown: int = 12
) -> Audit:
    """Audit the pairs of some rows.

    Args:
        rows: with at least one rejected answer among them; of more than :data:`MOST_ROWS` give a sample.
        count_tokens: length of an answer in tokens, where a tokenizer is at hand.
        seed: divides the rows for cross-validation.
        shown: most clues to list.
    """
    pairs = Pairs(rows)
    measures: dict[str, Callable[[str], int]] = {"words": lambda text: len(text.split())}
    if count_tokens is not None:
        measures["tokens"] = count_tokens
    shortcuts = []
    for unit, measure in measures.items():
        longer = np.array([np.sign(measure(chosen) - measure(rejected)) for chosen, rejected in pairs.texts])
        shortcuts += [
            Shortcut(f"always the longer, {unit}", pairs.share((1 + longer) / 2)),
            Shortcut(f"always the shorter, {unit}", pairs.share((1 - longer) / 2)),
        ]
    folds = _folds(pairs, seed)
    tables = {family: _Table(pairs, features) for family, features in FAMILIES.items()}
    separations = []
    if folds is not None:
        matrices = {family: table.matrix for family, table in tables.items()}
        matrices["all together"] = np.concatenate(list(matrices.values()), axis=1)
        for family, matrix in matrices.items():
            separations.append(Separation(family, pairs.share(held_out_points(matrix, folds))))
    clues = sorted((clue for family, table in tables.items() for clue in table.clues(family)), key=_clearness)[:shown]
    warned = [found for one in separations if one.family in ADVICE and (found := _warning(one, clues)) is not None]
    return Audit(len(pairs.rows), len(pairs.texts), shortcuts, separations, clues, warned)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters.

    Example:
        >>> words_of("It isn't RED, is it?")
        ['it', "isn't", 'red', 'is', 'it']
    """
    return _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_MARKS = re.compile(r"[^\w\s']")
_NEGATIONS = frozenset(["no", "not", "none", "nothing", "nobody", "never", "neither", "nor", "without", "cannot"])


def _words(text: str) -> Features:
    return dict.fromkeys((f"'{word}'" for word in words_of(text)), 1)


def _phrases(text: str) -> Features:
    return dict.fromkeys((f"'{' '.join(two)}'" for two in pairwise(words_of(text))), 1)


def _first_word(text: str) -> Features:
    return {f"begins with '{words[0]}'": 1} if (words := words_of(text)) else {}


def _punctuation(text: str) -> Features:
    counts = Counter(f"'{mark}'" for mark in _MARKS.findall(text))
    last = text.strip()[-1:]
    return counts | {
        f"ends with '{last}'" if _MARKS.fullmatch(last) else "ends without a mark": 1,
        "marks": counts.total(),
    }


def _digits(text: str) -> Features:
    return {"numbers in digits": len(re.findall(r"\d+", text))}


def _length(text: str) -> Features:
    return {"words": len(text.split()), "characters": len(text)}


def _negations(text: str) -> Features:
    return {"negations": sum(word in _NEGATIONS or word.endswith("n't") for word in words_of(text))}


def _repetition(text: str) -> Features:
    words = words_of(text)
    found: dict[str, float] = {}
    for size, name in ((1, "a word"), (2, "two words"), (3, "three words")):
        grams = Counter(zip(*(words[i:] for i in range(size)), strict=False))
        again = [" ".join(gram) for gram, times in grams.items() if times > 1]
        found[f"{name} in a row that come again" if size > 1 else "words that come again"] = len(again)
        found |= dict.fromkeys((f"'{gram}' twice" for gram in again), 1)
    return found


FAMILIES: Mapping[str, Callable[[str], Features]] = {
    "words": _words,
    "phrases": _phrases,
    "first word": _first_word,
    "punctuation": _punctuation,
    "digits": _digits,
    "length": _length,
    "negations": _negations,
    "repetition": _repetition,
}
"""What an answer is described by. Of a pair, a feature says which side has more of it, and not how much more."""

_SAME_WAY = (
    "Make the rejected answers the same way as the chosen ones: `cwdpo negatives gentle` edits one word of them, "
)
_SAME_WAY += "`cwdpo negatives sample` lets the policy write them."
ADVICE: Mapping[str, str] = {
    "words": _SAME_WAY,
    "phrases": _SAME_WAY,
    "first word": "Rejected answers begin in another way. " + _SAME_WAY,
    "punctuation": "Write both sides with the same punctuation, or remove it from both.",
    "digits": "Write numbers the same way on both sides.",
    "length": "Drop pairs of very different length, `cwdpo negatives filter --length-gap 0.2`, or add pairs in which "
    "the other side is longer.",
    "negations": "Add pairs in which the chosen answer is the one that negates.",
    "repetition": "One side names a thing or a place twice, as half of a swap does. Undo swaps on both sides, or drop "
    "such pairs.",
}
"""What to do with the data, by family."""


class _Table:
    """The features of one family, by pair."""

    def __init__(self, pairs: Pairs, features: Callable[[str], Features]) -> None:
        known: dict[str, Features] = {}
        for both in pairs.texts:
            for text in both:
                if text not in known:
                    known[text] = features(text)
        self._pairs, self._known = pairs, known
        signs = [_signs(known[chosen], known[rejected]) for chosen, rejected in pairs.texts]
        differ = Counter(name for of_pair in signs for name in of_pair)
        self.names = [name for name, times in differ.most_common(_MOST_FEATURES) if times >= _FEWEST_PAIRS]
        column = {name: number for number, name in enumerate(self.names)}
        self.matrix = np.zeros((len(signs), len(self.names)), dtype=np.float32)
        for number, of_pair in enumerate(signs):
            for name, sign in of_pair.items():
                if name in column:
                    self.matrix[number, column[name]] = sign

    def clues(self, family: str) -> list[Clue]:
        """The features that are clearly on one side; each row counts once, by the sign of its pairs' sum."""
        count = len(self._pairs.rows)
        by_row = np.zeros((count, len(self.names)))
        np.add.at(by_row, self._pairs.owner, self.matrix)
        up, down = (by_row > 0).sum(axis=0), (by_row < 0).sum(axis=0)
        clear = np.abs(up - down) >= CLEAR * np.sqrt(np.maximum(up + down, 1))
        texts, known = self._pairs.texts, self._known
        chosen, rejected = (
            Counter(name for both in texts for name, much in known[both[side]].items() if much > 0) for side in (0, 1)
        )
        return [
            Clue(
                family,
                (name := self.names[number]),
                chosen[name] / len(texts),
                rejected[name] / len(texts),
                int(up[number]),
                int(down[number]),
            )
            for number in np.flatnonzero(clear)
        ]


def _signs(chosen: Features, rejected: Features) -> dict[str, int]:
    """1 for what the chosen answer has more of, -1 for what the rejected one has more of."""
    names = chosen.keys() | rejected.keys()
    signs = {name: int(np.sign(chosen.get(name, 0) - rejected.get(name, 0))) for name in sorted(names)}
    return {name: sign for name, sign in signs.items() if sign}


def _clearness(clue: Clue) -> tuple[float, str, str]:
    up, down = clue.more_in_chosen, clue.more_in_rejected
    return -abs(up - down) / (up + down) ** 0.5, clue.family, clue.feature


def _folds(pairs: Pairs, seed: int) -> NDArray[np.int64] | None:
    """``(pairs,)`` part of each; pairs of one chosen text stay together, or a fit would know it. None for fewer than
    two texts a part."""
    texts = {text: number for number, text in enumerate(dict.fromkeys(chosen for chosen, _ in pairs.texts))}
    if len(texts) < 2 * _FOLDS:
        return None
    part = np.random.default_rng(seed).permutation(len(texts)) % _FOLDS
    return np.array([part[texts[chosen]] for chosen, _ in pairs.texts])


def held_out_points(x: NDArray[np.float32], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Points of each pair under a logistic regression that was fitted on the other folds.

    Args:
        x: ``(pairs, features)`` chosen minus rejected.
        folds: ``(pairs,)`` part of each pair.

    Returns:
        ``(pairs,)`` 1 where it prefers the chosen answer, 0 the rejected one, 0.5 where it sees no difference.
    """
    points = np.empty(len(x))
    for fold in np.unique(folds):
        weights = fit_preference(x[folds != fold])
        points[folds == fold] = (1 + np.sign(x[folds == fold] @ weights)) / 2
    return points


def fit_preference(x: NDArray[np.float32], *, ridge: float = _RIDGE) -> NDArray[np.float32]:
    r"""Weights w that minimise sum_i -log sigmoid(x_i w) + ridge |w|^2 / 2, by Newton's method.

    Each step's system is solved by conjugate gradients. There is no intercept: exchanging the two answers only changes
    the sign of x.

    Args:
        x: ``(pairs, features)`` chosen minus rejected.
        ridge: > 0.

    Returns:
        ``(features,)`` weights.
    """
    weights = np.zeros(x.shape[1], dtype=np.float32)
    for _ in range(15):
        wrong = 1 / (1 + np.exp(np.clip(x @ weights, -30, 30)))
        gradient = ridge * weights - x.T @ wrong
        curve = wrong * (1 - wrong)
        step = _conjugate_gradients(lambda v, c=curve: x.T @ (c * (x @ v)) + ridge * v, gradient)  # type: ignore[misc]
        weights -= step
        if np.abs(step).max(initial=0) < 1e-3:
            break
    return weights


def _conjugate_gradients(
    product: Callable[[NDArray[np.float32]], NDArray[np.float32]], target: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Solve ``product(v) = target`` for a symmetric positive definite product, to a relative error of 1e-3."""
    found, left = np.zeros_like(target), target.copy()
    way, size = left.copy(), float(left @ left)
    enough = 1e-6 * size
    for _ in range(100):
        if size <= enough:
            break
        changed = product(way)
        pace = size / float(way @ changed)
        found += pace * way
        left -= pace * changed
        before, size = size, float(left @ left)
        way = left + (size / before) * way
    return found


def _warning(one: Separation, clues: Sequence[Clue]) -> Warned | None:
    if one.accuracy.low <= MUCH:
        return None
    own = [clue for clue in clues if clue.family == one.family][:3]
    named = "; ".join(
        f"{clue.feature}: more often in the {'chosen' if clue.more_in_chosen > clue.more_in_rejected else 'rejected'} "
        f"answer ({max(clue.more_in_chosen, clue.more_in_rejected)} of "
        f"{clue.more_in_chosen + clue.more_in_rejected} rows that differ in it)"
        for clue in own
    )
    evidence = f"by {one.family} alone, the chosen answer is found in {percent(one.accuracy)} of held-out pairs"
    return Warned(one.family, evidence + (f" ({named})." if named else "."), ADVICE[one.family])


def percent(estimate: Estimate) -> str:
    """A share with its interval.

    Example:
        >>> percent(wilson(5, 10))
        '50 % [24, 76]'
    """
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"
