"""How sure a measured number is: bootstrap intervals over rows, and Wilson's for shares."""

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
