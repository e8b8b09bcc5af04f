"""A share that may change over a run."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from cwdpo.errors import ConfigError

Fraction: TypeAlias = float | Sequence[Sequence[float]]
"""A share, or points ``[progress, share]`` with straight lines between them; progress goes from 0 to 1 over the run."""


def check_fraction(value: Fraction, name: str = "on_policy_fraction", what: str = "share") -> None:
    """Refuse what is neither a share nor a schedule.

    Args:
        value: from the recipe.
        name: the setting, as messages call it.
        what: the number, as messages call it.

    Raises:
        ConfigError: a share outside [0, 1], or points that are not in the order of progress.
    """
    points: Any = [(0.0, value)] if _is_number(value) else value
    told = f"{name} is {value!r}"
    if isinstance(points, str) or not isinstance(points, Sequence) or not points:
        raise ConfigError(f"{told}, but must be a {what} such as 0.5, or points such as [[0, 0], [1, 0.8]].")
    last = -math.inf
    for point in points:
        if not isinstance(point, Sequence) or len(point) != 2 or not all(map(_is_number, point)):
            raise ConfigError(f"{told}, but {point!r} is no point. Write [progress, {what}], as [0.5, 0.8].")
        progress, share = map(float, point)
        if not (0 <= progress <= 1 and 0 <= share <= 1):
            raise ConfigError(f"{told}, but progress and {what} go from 0 to 1. Correct {point!r}.")
        if progress <= last:
            raise ConfigError(f"{told}, but its points are not in the order of progress. Sort them, each once.")
        last = progress


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
