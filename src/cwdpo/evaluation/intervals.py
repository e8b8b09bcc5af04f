"""How sure a measured number is: bootstrap intervals over rows, paired ones for two models, the jackknife, and Wilson's
for shares."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
"""One value a row."""


class Estimate(NamedTuple):
    """A number with its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Rows that it was measured on."""


def mean_estimate(values: Values, *, level: float = 0.95, samples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of one value a row, with a bootstrap interval over rows. For a paired comparison, give differences.

    Raises:
        ValueError: there is no value, or one that is not finite.

    Example:
        >>> mean_estimate(np.ones(5))
        Estimate(value=1.0, low=1.0, high=1.0, n=5)
    """
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected finite values, at least one; got {len(values)} of which some may be nan")
    return statistic_estimate(lambda rows: float(values[rows].mean()), len(values), level, samples, seed)


def statistic_estimate(
    statistic: Callable[[NDArray[np.int64]], float],
    n: int,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Any statistic of a set of rows, with its percentile bootstrap interval (Efron, 1979).

    Args:
        statistic: gives the number for row indices, in which a row may come several times or not at all. One that is
            not defined for a resample (an F1 score with no positive row) gives nan, and that resample is left out.
        n: rows.
        level: confidence, in (0, 1).
        samples: resamples of the rows.
        seed: of the resamples; the same seed and ``n`` give the same ones, so that two models are compared on them.

    Raises:
        ValueError: no row, or a statistic that is not defined on all of them.
    """
    every = np.arange(n)
    value = statistic(every) if n else math.nan
    if math.isnan(value):
        raise ValueError(f"the statistic is not defined on these {n} rows")
    rng = np.random.default_rng(seed)
    found = np.array([statistic(rng.integers(n, size=n)) for _ in range(samples)])
    low, high = np.quantile(found[~np.isnan(found)], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


NEGLIGIBLE = 1e-4
"""No difference this small is called beyond chance: it may be rounding, or a constant against division by zero."""


class Paired(NamedTuple):
    """A number of a model, and beside a base model on the same rows also the base's and the difference."""

    model: Estimate
    base: Estimate | None = None
    difference: Estimate | None = None

    @property
    def beyond_chance(self) -> bool | None:
        """Whether the interval of the difference leaves out all between -1e-4 and 1e-4, which no reader would call a
        difference; None without a base."""
        if self.difference is None:
            return None
        return self.difference.low > NEGLIGIBLE or self.difference.high < -NEGLIGIBLE


def paired_estimate(
    statistic: Callable[[Values], Values],
    model: Values,
    base: Values | None = None,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> Paired:
    """A statistic of sums over rows, such as a ratio, of one or two models; the same as :func:`statistic_estimate` on
    the same resamples, and much faster.

    Args:
        statistic: makes of ``(..., k)`` sums over rows ``(...)`` numbers, not finite where it is not defined.
        model: ``(rows, k)`` what each row adds to the sums.
        base: the same of another model on the same rows; the difference is model minus base, resample by resample.
        level, samples, seed: of :func:`statistic_estimate`.

    Raises:
        ValueError: no row, or a statistic that is not defined on all of them.

    Example:
        >>> accuracy = paired_estimate(lambda sums: sums[..., 0] / sums[..., 1], np.array([[1.0, 1.0], [1.0, 1.0]]))
        >>> accuracy.model
        Estimate(value=1.0, low=1.0, high=1.0, n=2)
    """
    n = len(model)
    rng = np.random.default_rng(seed)
    values: list[list[Values]] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = [float(statistic(sums.sum(axis=0))) for sums in (model, base) if sums is not None] if n else []
        if not whole or not all(map(math.isfinite, whole)):
            raise ValueError(f"the statistic is not defined on these {n} rows")
        for start in range(0, samples, _AT_A_TIME):
            drawn = [rng.integers(n, size=n) for _ in range(min(_AT_A_TIME, samples - start))]
            counts = np.array([np.bincount(rows, minlength=n) for rows in drawn], dtype=np.float64)
            values.append([statistic(counts @ sums) for sums in (model, base) if sums is not None])
    found = [np.concatenate(parts) for parts in zip(*values, strict=True)]
    estimates = [_percentiles(value, numbers, n, level) for value, numbers in zip(whole, found, strict=True)]
    if base is None:
        return Paired(estimates[0])
    return Paired(estimates[0], estimates[1], _percentiles(whole[0] - whole[1], found[0] - found[1], n, level))


_AT_A_TIME = 250
"""Resamples that are held in memory at once."""


def _percentiles(value: float, found: Values, n: int, level: float) -> Estimate:
    known = found[np.isfinite(found)]
    if not len(known):
        raise ValueError(f"the statistic is not defined on any resample of these {n} rows")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), n)


def jackknife_estimate(value: float, without: Values, *, level: float = 0.95) -> Estimate:
    r"""A number with the interval of its jackknife standard error (Tukey, 1958), for what no resample can measure.

        value +- z sqrt((n - 1) / n sum_i (v_i - mean v)^2)

    Args:
        value: of all rows.
        without: ``(n,)`` v_i, the number without row i; at least two. For a paired comparison give differences.
        level: confidence, in (0, 1).

    Example:
        >>> [round(number, 3) for number in jackknife_estimate(2.0, np.array([2.5, 2.0, 1.5]))]
        [2.0, 0.868, 3.132, 3]
    """
    n = len(without)
    if n < 2 or not np.isfinite(without).all() or not math.isfinite(value):
        raise ValueError(f"expected finite numbers without each of at least two rows, got {n}")
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Estimate(value, value - reach, value + reach, n)


def wilson(successes: float, n: int, *, level: float = 0.95) -> Estimate:
    r"""Wilson's score interval of a share (Wilson, 1927), which holds for few rows and for shares near 0 and 1.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Args:
        successes: of ``n``; a tie counts as half.
        n: independent trials, at least 1.
        level: confidence, in (0, 1).

    Example:
        >>> [round(number, 3) for number in wilson(5, 10)]
        [0.5, 0.237, 0.763, 10]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"expected successes from 0 to n and n >= 1, got {successes} of {n}")
    share, z = successes / n, NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Estimate(share, max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale), n)
