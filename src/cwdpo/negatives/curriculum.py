"""A curriculum over negatives: from those that are just hard enough to the hardest, as fast as the policy learns.

A *level* in [0, 1] says which of a prompt's candidates its places take, ordered by lbar under the policy: 0 the
easiest, 1 the hardest. It follows a schedule, or what probes read. Floats only: no torch, no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEP = 0.25
"""How far one decision moves the level: five levels, so that a reading's noise does not swing it from end to end."""

GROWTH = 0.05
"""Nats per token by which the margin must grow before harder negatives come: what is there is learnt."""

PATIENCE = 3
"""Readings since the last decision after which a margin that has grown less counts as stalled."""


@dataclass(frozen=True, slots=True)
class LevelReading:
    """What one reading of the probes says, nats per token."""

    chosen: float
    """Mean lbar of the chosen answers."""

    margin: float
    """The same, less the mean lbar of the gentle negatives, or of the rejected ones where there are none."""


def order_by_level(lbars: Sequence[float], level: float) -> list[int]:
    """The positions of some candidates in the order in which a prompt's places take them.

    The candidate of rank r among n, counted from the easiest (r = 0), stands r / (n - 1) along the curriculum. The one
    that stands nearest the level comes first, then the next nearest; of two as near, the easier.

    Args:
        lbars: of each candidate, nats per token; of equal ones the first counts as the easier.
        level: from 0, the easiest, to 1, the hardest.

    Example:
        >>> order_by_level([-1.0, -4.0, -2.0], 0.0), order_by_level([-1.0, -4.0, -2.0], 1.0)
        ([1, 2, 0], [0, 2, 1])
    """
    easiest_first = sorted(range(len(lbars)), key=lambda place: (lbars[place], place))
    aim = level * (len(lbars) - 1)
    ranks = sorted(range(len(lbars)), key=lambda rank: (abs(rank - aim), rank))
    return [easiest_first[rank] for rank in ranks]


def auto_level(
    readings: Sequence[LevelReading], *, tolerance: float, growth: float = GROWTH, patience: int = PATIENCE
) -> float:
    """The level after some readings. It depends on them alone, so that a resumed run comes to the same.

    The first reading is where counting starts, at level 0. After each later one:

    1. chosen answers more than ``tolerance`` below the highest reading before: one :data:`STEP` easier;
    2. else the margin ``growth`` above that of the last decision (learnt), or ``patience`` readings since then
       (stalled): one step harder;
    3. else as it is.

    Args:
        readings: oldest first; one that is not finite is passed over.
        tolerance: nats per token that the chosen answers may lose.
        growth: nats per token.
        patience: readings.

    Returns:
        From 0 to 1.
    """
    level, waited = 0.0, 0
    highest = start = -math.inf
    for reading in readings:
        if not (math.isfinite(reading.chosen) and math.isfinite(reading.margin)):
            continue
        if highest == -math.inf:
            start = reading.margin
        elif reading.chosen < highest - tolerance:
            level, start, waited = max(0.0, level - STEP), reading.margin, 0
        elif reading.margin - start >= growth or waited + 1 >= patience:
            level, start, waited = min(1.0, level + STEP), reading.margin, 0
        else:
            waited += 1
        highest = max(highest, reading.chosen)
    return level
