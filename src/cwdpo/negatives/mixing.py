"""Mixing: how many of a prompt's negatives are sampled from the policy, and which; with a curriculum, how hard.

Every choice is a hash of the seed, the row's id and the round, without state. So it is the same after an interruption,
in any order of the rows, and with any number of workers and ranks.

The *level* of a curriculum, in [0, 1], says which of a prompt's candidates come first, ordered by lbar under the
policy: 0 the easiest, 1 the hardest. It follows a schedule, or what probes read. Floats only: no torch, no model.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import xxhash

from cwdpo.config.limits import Fraction, check_fraction
from cwdpo.negatives.filtering import normalised

Source: TypeAlias = Literal["dataset", "on_policy"]


@dataclass(frozen=True, slots=True)
class MixedNegative:
    """A chosen negative, with where it came from and its place there."""

    text: str
    source: Source
    index: int


def mix_negatives(
    dataset: Sequence[str],
    on_policy: Sequence[str],
    *,
    fraction: float,
    seed: int,
    row_id: str,
    round: int = 0,
    count: int | None = None,
    level: float | None = None,
    lbars: Mapping[str, float] | None = None,
    text_of: Mapping[str, str] | None = None,
) -> list[MixedNegative]:
    """Choose a row's negatives.

    Each place is filled from the policy's samples with probability ``fraction``; where one source has run out, the
    other fills in, so that a row without samples keeps all its negatives. No text is taken twice, nor one that differs
    in form alone.

    Args:
        dataset, on_policy: negatives of the data set, and samples from the policy: their texts, or any names of them.
        fraction: share from the policy, from 0 to 1.
        row_id: two rows of one id get the same choices.
        round: the epoch, step or refresh; another round chooses again.
        count: how many to choose; by default as many as the data set has, or one where it has none.
        level: which of a source's answers come first, see :func:`order_by_level`; by default the round chooses.
        lbars: of every answer, nats per token; needed with a level.
        text_of: where answers are given by name, such as a content key, their texts. A name without one is compared
            as it is.

    Returns:
        At most ``count``, fewer only where both sources together hold fewer different texts.
    """
    check_fraction(fraction)
    texts = text_of or {}
    form = {name: normalised(texts.get(name, name)) for name in (*dataset, *on_policy)}
    sources: dict[Source, Sequence[str]] = {"dataset": dataset, "on_policy": on_policy}
    pools: dict[Source, list[MixedNegative]] = {}
    for source, answers in sources.items():
        if level is None:
            places = sorted(range(len(answers)), key=lambda place: hashed(seed, row_id, round, source, place))
        else:
            places = order_by_level([(lbars or {})[name] for name in answers], level)
        pools[source] = [MixedNegative(answers[place], source, place) for place in places]
    wanted = (len(dataset) or 1) if count is None else count
    chosen: list[MixedNegative] = []
    while len(chosen) < wanted and any(pools.values()):
        from_policy = uniform(seed, row_id, round, "source", len(chosen)) < fraction
        order: tuple[Source, Source] = ("on_policy", "dataset") if from_policy else ("dataset", "on_policy")
        negative = next(pools[source].pop(0) for source in order if pools[source])
        chosen.append(negative)
        for name, pool in pools.items():
            pools[name] = [other for other in pool if form[other.text] != form[negative.text]]
    return chosen


def wants_samples(*, fraction: float, seed: int, row_id: str, round: int, num_dataset: int, count: int | None) -> bool:
    """Whether :func:`mix_negatives` would take a sample for this row if there were one; else none need be drawn."""
    wanted = (num_dataset or 1) if count is None else count
    drawn = any(uniform(seed, row_id, round, "source", place) < fraction for place in range(wanted))
    return drawn or (fraction > 0 and wanted > num_dataset)


def fraction_at(value: Fraction, progress: float) -> float:
    """The share at a point of the run; before the first point and after the last it stays as it is there.

    The value has passed :func:`check_fraction`, as a recipe's has.

    Example:
        >>> fraction_at([[0, 0.0], [0.5, 1.0]], 0.25), fraction_at([[0, 0.0], [0.5, 1.0]], 0.9), fraction_at(0.3, 0.5)
        (0.5, 1.0, 0.3)
    """
    if isinstance(value, int | float):
        return float(value)
    if progress < value[0][0]:
        return float(value[0][1])
    for before, after in itertools.pairwise(value):
        if progress < after[0]:
            along = (progress - before[0]) / (after[0] - before[0])
            return float(before[1] + along * (after[1] - before[1]))
    return float(value[-1][1])


STEP = 0.25
"""How far one decision moves the level: five levels, so that a reading's noise does not swing it from end to end."""

GROWTH = 0.05
"""Nats per token by which the margin must grow before harder negatives come: the present ones are learned."""

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
    2. else the margin ``growth`` above that of the last decision (learned), or ``patience`` readings since then
       (stalled): one step harder;
    3. else as it is.

    Args:
        readings: oldest first; one that is not finite is passed over.
        tolerance: nats per token that the chosen answers may lose.
        growth: nats per token.
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


def uniform(seed: int, *parts: object) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, on any machine.

    Example:
        >>> uniform(0, "row-1", 2) == uniform(0, "row-1", 2) != uniform(0, "row-1", 3)
        True
    """
    return (hashed(seed, *parts) >> 11) / 2**53


def hashed(seed: int, *parts: object) -> int:
    """A 64-bit number that depends on nothing but its arguments; each is kept apart from its neighbours."""
    text = "".join(f"{len(str(part))}:{part}|" for part in (seed, *parts))
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))
