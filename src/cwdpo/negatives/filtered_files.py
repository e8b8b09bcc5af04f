"""Filters over whole files: easy, long, look-alike and too similar negatives are taken out and counted."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwdpo.data.rows import Row
from cwdpo.negatives.columns import with_negatives
from cwdpo.negatives.files import json_line, refuse_existing, rows_with_records
from cwdpo.negatives.filtering import Rules, filter_negatives
from cwdpo.negatives.hardness import threshold
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
    image_root: Path | None = None,
) -> FilterReport:
    """Take negatives out of a file; a row that loses all of them is left out.

    Args:
        data: rows with negatives.
        out: JSON lines; must not be there yet.
        rules: on the texts alone.
        drop_easier_than: floor of lbar in nats per token, or ``quantile:q`` of the file's.
        drop_ches_above: ceiling of the length-normalised CHES, or ``quantile:q`` of the file's.
        measure: needed for the last two.
        image_root: as in :func:`cwdpo.data.reading.read_rows`.
    """
    refuse_existing(out)
    rows = list(rows_with_records(data, image_root))
    asks_model = drop_easier_than is not None or drop_ches_above is not None
    assert measure is not None or not asks_model, "a model is needed to measure hardness"
    hardness = measure([row for _, row in rows]) if measure is not None and asks_model else None
    every = [one for of_row in hardness or () for one in of_row]
    floor = None if drop_easier_than is None else threshold([one.lbar for one in every], drop_easier_than)
    ceiling = None if drop_ches_above is None else threshold([one.ches for one in every], drop_ches_above)
    counts: Counter[str] = Counter()
    lines = []
    for place, (record, row) in enumerate(rows):
        seen = hardness[place] if hardness is not None else None
        found = filter_negatives([row.chosen], row.rejected, rules)
        reasons = dict(found.dropped)
        for index in found.kept:
            if seen is not None and floor is not None and seen[index].lbar < floor:
                reasons[index] = "too_easy"
            elif seen is not None and ceiling is not None and seen[index].ches > ceiling:
                reasons[index] = "too_similar"
        kept = [text for index, text in enumerate(row.rejected) if index not in reasons]
        counts.update([*reasons.values(), *("kept" for _ in kept)])
        if kept:
            lines.append(json_line(with_negatives(record, kept), row.source))
    write_text(out, "".join(lines))
    return FilterReport(len(rows), len(lines), counts, floor, ceiling)
