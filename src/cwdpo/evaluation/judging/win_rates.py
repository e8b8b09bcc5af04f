"""Statistics of pairwise verdicts: win rates, with and without the effect of length, and Bradley-Terry strengths.

A *score* is what the first of two answers gets for a row: 1 won, 0.5 tie, 0 lost; nan where the row was not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwdpo.errors import DataError
from cwdpo.evaluation.intervals import Estimate, Values, mean_estimate, wilson

RIDGE = 1e-3
"""Weight of the squares that keep a logistic regression finite where one side wins everything."""

_STEPS = 100
_ROUNDS = 10_000
_CLOSE = 1e-10


@dataclass(frozen=True, slots=True)
class OrderReport:
    """What the place of an answer did to a judge that was asked in both orders."""

    consistent: Estimate | None
    """Share of rows with the same verdict in both orders; None where no row was judged in both."""

    first_preferred: Estimate | None
    """Share of the decided verdicts, both orders counted, that went to the answer shown first: 0.5 is a fair judge."""


def order_report(one_way: Values, other_way: Values) -> OrderReport:
    """Compare the verdicts of both orders.

    Args:
        one_way: ``(n,)`` score of model A when it is shown first.
        other_way: ``(n,)`` score of A when it is shown second; nan in either leaves the row out.
    """
    known = ~(np.isnan(one_way) | np.isnan(other_way))
    first, second = one_way[known], other_way[known]
    if not len(first):
        return OrderReport(None, None)
    to_first = np.concatenate([first, 1 - second])
    decided = to_first[to_first != 0.5]
    preferred = wilson(float(decided.sum()), len(decided)) if len(decided) else None
    return OrderReport(wilson(float((first == second).sum()), len(first)), preferred)


def both_orders(one_way: Values, other_way: Values) -> Values:
    """The score of A by both orders, arguments as in :func:`order_report`. A verdict that changes with the order is a
    tie, and so is one that is a tie in one order alone.

    Example:
        >>> both_orders(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.5]))
        array([1. , 0.5, 0. , 0.5])
    """
    agreed = np.where(one_way == other_way, one_way, 0.5)
    return np.where(np.isnan(one_way) | np.isnan(other_way), np.nan, agreed)


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often A beats B. Ties count half in all but ``decided``."""

    wilson: Estimate
    """With Wilson's interval, which takes every row for independent."""

    bootstrap: Estimate
    """With the bootstrap interval over rows."""

    decided: Estimate | None
    """Share of A among the rows that have a winner, with Wilson's interval; None where all are ties."""

    length_controlled: Estimate
    """See :func:`length_controlled`; bootstrap interval over rows."""


def win_rate(scores: Values, length_difference: Values, *, samples: int = 2000, seed: int = 0) -> WinRate:
    """Every win rate of A over B.

    Args:
        scores: ``(n,)`` of A, none of them nan.
        length_difference: ``(n,)`` length of A's answer minus that of B's, in one unit for all rows.
        samples: resamples of the rows.
        seed: of the resamples.
    """
    decided = scores[scores != 0.5]
    n = len(scores)
    drawn = _resamples(n, samples, seed)
    portion = max(1, 2_000_000 // n)  # resamples at one time, for the memory
    found = np.concatenate(
        [
            length_controlled(scores, length_difference, drawn[i : i + portion].astype(np.float64))
            for i in range(0, samples, portion)
        ]
    )
    low, high = np.quantile(found, [0.025, 0.975])
    (value,) = length_controlled(scores, length_difference)
    return WinRate(
        wilson=wilson(float(scores.sum()), n),
        bootstrap=mean_estimate(scores, samples=samples, seed=seed),
        decided=wilson(float(decided.sum()), len(decided)) if len(decided) else None,
        length_controlled=Estimate(float(value), float(low), float(high), n),
    )


def length_controlled(scores: Values, length_difference: Values, counts: Values | None = None) -> Values:
    r"""Win rate of A over B if their answers were of the same length, after AlpacaEval 2 (arXiv 2404.04475).

        P(A wins row i) = sigmoid(theta + phi tanh(d_i / std(d)))        win rate = sigmoid(theta)

    d_i is the difference of length. The paper's terms for how hard each prompt is need many models, and are left out.
    theta and phi minimise the cross-entropy plus :data:`RIDGE` times half their squares, by Newton's method. Where all
    differences are the same there is nothing to separate, and this is the mean score.

    Args:
        scores: ``(n,)`` of A; a tie, 0.5, counts as half a win.
        length_difference: ``(n,)`` A's minus B's.
        counts: ``(resamples, n)`` how often each row is in each resample; None is each row once.

    Returns:
        ``(resamples,)`` win rates; ``(1,)`` without counts.
    """
    c = np.ones((1, len(scores))) if counts is None else counts
    n = c.sum(axis=1)
    centre = (c @ length_difference) / n
    spread = np.sqrt(np.maximum(c @ length_difference**2 / n - centre**2, 0))
    flat = spread <= 1e-9 * (1 + np.abs(centre))
    x = np.tanh(length_difference / np.where(flat, 1, spread)[:, None])
    theta, phi = np.zeros(len(c)), np.zeros(len(c))
    for _ in range(_STEPS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * x)
        error, curve = c * (chance - scores), c * chance * (1 - chance)
        slope = np.stack([error.sum(axis=1) + RIDGE * theta, (error * x).sum(axis=1) + RIDGE * phi])
        aa, ab, bb = curve.sum(axis=1) + RIDGE, (curve * x).sum(axis=1), (curve * x**2).sum(axis=1) + RIDGE
        step = np.stack([bb * slope[0] - ab * slope[1], aa * slope[1] - ab * slope[0]]) / (aa * bb - ab**2)
        step /= np.maximum(np.linalg.norm(step, axis=0), 1)  # far from the minimum, a whole step can overshoot
        theta, phi = theta - step[0], phi - step[1]
        if np.abs(step).max() < 1e-6:  # the next one would be its square
            break
    return np.where(flat, c @ scores / n, _sigmoid(theta))


def bradley_terry(wins: Values) -> Values:
    r"""Log strengths of models under P(i beats j) = g_i / (g_i + g_j), by Hunter's MM algorithm (2004, eq. 2).

        g_i <- W_i / sum_j (n_ij / (g_i + g_j))        W_i = sum_j w_ij, n_ij = w_ij + w_ji

    Args:
        wins: ``(..., k, k)`` w_ij, how often i beat j, ties as half a win for each; the diagonal is not read.

    Returns:
        ``(..., k)`` log g in nats, with mean 0. nan for tables where it is not finite: where the models fall into two
        groups, one of which never won a point against the other (:func:`is_connected`).
    """
    k = wins.shape[-1]
    won = np.where(np.eye(k, dtype=bool), 0.0, wins)
    tables = won.reshape(-1, k, k)
    result = np.full((len(tables), k), np.nan)
    good = np.flatnonzero(is_connected(tables))
    games = tables[good] + tables[good].transpose(0, 2, 1)
    points = tables[good].sum(axis=-1)
    log_strength = np.zeros((len(good), k))
    for _ in range(_ROUNDS if len(good) else 0):
        strength = np.exp(log_strength)
        shares = games / (strength[:, :, None] + strength[:, None, :])
        new = np.log(points / shares.sum(axis=-1))
        new -= new.mean(axis=-1, keepdims=True)
        moved = np.abs(new - log_strength).max()
        log_strength = new
        if moved < _CLOSE:
            break
    result[good] = log_strength
    return result.reshape(wins.shape[:-1])


def is_connected(wins: Values) -> NDArray[np.bool_]:
    """``(...)`` whether each model of a ``(..., k, k)`` table is reached from each other by a chain of points won."""
    return np.asarray(_reached(wins).all(axis=(-2, -1)))


def strengths(
    scores: Values, pairs: Sequence[tuple[int, int]], names: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> list[Estimate]:
    """Bradley-Terry strengths of several models in nats, mean 0, with bootstrap intervals over rows.

    Resamples in which a strength is not finite are left out, so where a model rarely loses its interval is too short.

    Args:
        scores: ``(rows, pairs)`` score of a pair's first model; nan where the row was not judged.
        pairs: the models of each column, by number.
        names: of the models, for messages.
        samples: resamples of the rows; all pairs are resampled together.
        seed: of the resamples.

    Raises:
        DataError: the comparisons are disconnected, so a strength would be infinite.
    """
    points = np.nan_to_num(scores)
    against = np.nan_to_num(1 - scores)
    total = _wins_table(points.sum(axis=0), against.sum(axis=0), pairs, len(names))
    if not is_connected(total):
        raise DataError(_disconnected(total, names))
    n = len(scores)
    drawn = _resamples(n, samples, seed).astype(np.float64)
    value = bradley_terry(total)
    found = bradley_terry(_wins_table(drawn @ points, drawn @ against, pairs, len(names)))
    low, high = np.nanquantile(found, [0.025, 0.975], axis=0)
    return [Estimate(float(v), float(a), float(b), n) for v, a, b in zip(value, low, high, strict=True)]


def _wins_table(points: Values, against: Values, pairs: Sequence[tuple[int, int]], k: int) -> Values:
    """``(..., k, k)`` tables of wins from ``(..., pairs)`` points of the first and of the second model of each pair."""
    table = np.zeros((*points.shape[:-1], k, k))
    for column, (i, j) in enumerate(pairs):
        table[..., i, j] += points[..., column]
        table[..., j, i] += against[..., column]
    return table


def _disconnected(wins: Values, names: Sequence[str]) -> str:
    """Which models cannot be placed: those that one model never lost a point to, directly or through others."""
    reached = _reached(wins)
    start = int(np.argmin(reached.sum(axis=1)))
    below = [name for name, there in zip(names, reached[start], strict=True) if there]
    above = [name for name, there in zip(names, reached[start], strict=True) if not there]
    return (
        f"no Bradley-Terry strengths: {', '.join(below)} never won a point against {', '.join(above)}, so their "
        "distance is not finite. Judge more rows, or read the win rates of the pairs."
    )


def _reached(wins: Values) -> NDArray[np.bool_]:
    """``(..., k, k)`` whether a chain of points won leads from i to j."""
    k = wins.shape[-1]
    reached = (wins > 0) | np.eye(k, dtype=bool)
    for _ in range(k.bit_length()):  # chains of up to 1, 2, 4, ... links
        reached = (reached.astype(np.int64) @ reached.astype(np.int64)) > 0
    return reached


def _resamples(n: int, samples: int, seed: int) -> NDArray[np.uint8]:
    """``(samples, n)`` how often each row is in each resample, for the bootstrap."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n).astype(np.uint8) for _ in range(samples)])


def _sigmoid(logits: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-logits)))
