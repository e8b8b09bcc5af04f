"""How much probes ask in a run: as many rows, other images and own answers as a tenth of its work pays for.

The size follows from how many rows the run trains on, not from a clock: the same recipe asks the same everywhere.
"""

from dataclasses import dataclass

from cwdpo.probes.schedule import SHARE

MOST, LEAST = 32, 4
"""Rows of a probe set whose size is not given."""

_QUARTER = 4
"""One row in so many is at least shown under other images, and answered by the model itself."""

_READING, _OTHER_IMAGES = 0.75, 0.95
_OWN_ANSWERS, _SHOWN = 2.4, 1.2
"""What a probe row costs, in training steps of one row: a reading under its own images, with about eight answers; what
other images add to it (two more prompts); three answers of the model's own; and both measurements token by token.
Counted on a LLaVA of 11 million parameters with 576 image tokens; where answers are longer the rest is longer too."""

_READINGS = 2
"""At the first step and at the last; those between them are taken as far as there is time."""

_MEASURED = 0.3
"""What a row of the reference pass costs, in the same unit."""

_PLANNED = 0.8 * SHARE
"""Planned share of the run's work: probes are also encoded, and drawn for the report."""


@dataclass(frozen=True, kw_only=True)
class ProbeSize:
    """How many rows a probe set has, and for how many of them the costlier questions are asked."""

    rows: int
    image_rows: int
    """The first rows, whose chosen answer is measured under other images too."""

    own_rows: int
    """The first rows, which the model answers itself, and of which some are shown token by token."""

    @property
    def cost(self) -> float:
        """Of the probes that every stage has, in training steps of one row."""
        readings = _READINGS * (_READING * self.rows + _OTHER_IMAGES * self.image_rows)
        return readings + (_OWN_ANSWERS + _SHOWN) * self.own_rows


def whole(rows: int) -> ProbeSize:
    """Every question of every row."""
    return ProbeSize(rows=rows, image_rows=rows, own_rows=rows)


def size_within(trained: int, *, measured: int = 0) -> ProbeSize:
    """The largest probe set that a tenth of a stage's work pays for, with :data:`LEAST` to :data:`MOST` rows.

    Args:
        trained: rows that the stage trains on, each epoch counted.
        measured: rows of the reference pass.

    Example:
        >>> size_within(40, measured=40)
        ProbeSize(rows=4, image_rows=1, own_rows=1)
        >>> size_within(400, measured=400).rows, size_within(10_000) == whole(MOST)
        (13, True)
    """
    budget = _PLANNED * (trained + _MEASURED * measured)
    sizes = [
        ProbeSize(rows=n, image_rows=-(-n // _QUARTER), own_rows=-(-n // _QUARTER)) for n in range(LEAST, MOST + 1)
    ]
    size = max((one for one in sizes if one.cost <= budget), key=lambda one: one.rows, default=sizes[0])
    larger = (ProbeSize(rows=size.rows, image_rows=n, own_rows=n) for n in range(size.rows, size.own_rows, -1))
    return next((one for one in larger if one.cost <= budget), size)
