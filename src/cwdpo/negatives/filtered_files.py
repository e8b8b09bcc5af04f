"""Filters over whole files: easy, long, look-alike and too similar negatives are taken out and counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.negatives.columns import with_negatives
from cwdpo.negatives.files import json_line, refuse_existing, rows_with_records
from cwdpo.negatives.filtering import Rules, filter_negatives
from cwdpo.negatives.hardness import TOO_EASY, threshold
from cwdpo.negatives.right_answers import RightAnswers
from cwdpo.records.files import write_text


@dataclass(frozen=True, slots=True)
class Hardness:
    """Of one negative, as a model sees it."""

    lbar: float
    """Nats per token."""

    ches: float
    """Length-normalised CHES similarity to the right answer."""


Measure = Callable[[Sequence[Row]], Sequence[Sequence[Hardness]]]
"""The hardness of every negative of some rows."""


@dataclass(frozen=True, slots=True)
class FilterReport:
    """What was kept."""

    rows: int
    rows_left: int
    negatives: Counter[str]
    """``kept``, and the dropped by reason."""

    lbar_floor: float | None
    ches_ceiling: float | None


def write_filtered(
    data: Path,
    out: Path,
    *,
    rules: Rules,
    drop_easier_than: float | str | None = None,
    drop_ches_above: float | str | None = None,
    measure: Measure | None = None,
    weigh: Callable[[float], float] | None = None,
    image_root: Path | None = None,
) -> FilterReport:
    """Take negatives out of a file; a row that loses all of them is left out.

    What a model measured is written into the rows, in the order of their negatives: ``lbar`` and ``ches``, and ``w_c``
    where a weight is known. ``negative_sources`` and other columns of theirs are kept in step.

    Args:
        data: rows with negatives.
        out: JSON lines; must not be there yet.
        rules: on the texts alone; right is what any row of the same prompt and images prefers.
        drop_easier_than: floor of lbar in nats per token, or ``quantile:q`` of the file's.
        drop_ches_above: ceiling of the length-normalised CHES, or ``quantile:q`` of the file's.
        measure: needed for the last two.
        weigh: w_c by lbar, of a run whose floor is known.
        image_root: as in :func:`cwdpo.data.reading.read_rows`.

    Raises:
        UserError: no negative would be left; nothing is written then.
    """
    refuse_existing(out)
    rows = list(rows_with_records(data, image_root))
    asks_model = drop_easier_than is not None or drop_ches_above is not None
    assert measure is not None or not asks_model, "a model is needed to measure hardness"
    hardness = None if measure is None else measure([row for _, row in rows])
    every = [one for of_row in hardness or () for one in of_row]
    floor = None if drop_easier_than is None or not every else threshold([one.lbar for one in every], drop_easier_than)
    ceiling = None if drop_ches_above is None or not every else threshold([one.ches for one in every], drop_ches_above)
    right_answers = RightAnswers(row for _, row in rows)
    counts: Counter[str] = Counter()
    lines = []
    for place, (record, row) in enumerate(rows):
        seen = None if hardness is None else hardness[place]
        reasons = dict(filter_negatives(right_answers(row), row.rejected, rules).dropped)
        _add_hardness(reasons, seen or (), floor, ceiling)
        kept = [index for index in range(len(row.rejected)) if index not in reasons]
        counts.update([*reasons.values(), *("kept" for _ in kept)])
        if kept:
            new = with_negatives(record, [row.rejected[index] for index in kept], kept)
            lines.append(
                json_line(new | _measurements([seen[index] for index in kept] if seen else [], weigh), row.source)
            )
    if not lines:
        told = ", ".join(f"{number} {reason}" for reason, number in counts.most_common()) or "there was none"
        raise UserError(f"{data}: no negative would be left ({told}), so nothing is written. Loosen the filters.")
    write_text(out, "".join(lines))
    return FilterReport(len(rows), len(lines), counts, floor, ceiling)


def _add_hardness(
    reasons: dict[int, str], seen: Sequence[Hardness], floor: float | None, ceiling: float | None
) -> None:
    """The reasons of hardness, for those that have no other."""
    for index, one in enumerate(seen):
        if index not in reasons and floor is not None and one.lbar < floor:
            reasons[index] = TOO_EASY
        elif index not in reasons and ceiling is not None and one.ches > ceiling:
            reasons[index] = "too_similar"


def _measurements(kept: Sequence[Hardness], weigh: Callable[[float], float] | None) -> dict[str, list[float]]:
    """What was measured, as columns of a row."""
    if not kept:
        return {}
    found = {"lbar": [one.lbar for one in kept], "ches": [one.ches for one in kept]}
    return found if weigh is None else found | {"w_c": [weigh(one.lbar) for one in kept]}
