"""What a page of negatives shows: the negatives of a file of rows, or those that a refresh sampled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cwdpo.data.formats import row_from_record
from cwdpo.data.parsing import read_records
from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.refreshes import read_refresh
from cwdpo.records.files import read_jsonl
from cwdpo.report.marks import Marked, marked
from cwdpo.report.series import finite

Weigh: TypeAlias = Callable[[float], float]
"""w_c of an answer by its lbar."""


@dataclass(frozen=True)
class Negative:
    """One wrong answer, marked beside the right one, and how hard it is as far as the file says so."""

    right: Marked
    wrong: Marked
    column: str
    """``gentle``, ``rejected``, ``negatives`` or ``on_policy``."""

    kind: str
    lbar: float | None = None
    """Mean log-probability, nats per token: the higher, the harder."""

    ches: float | None = None
    weight: float | None = None
    """w_c."""


Shown: TypeAlias = tuple[Row, list[Negative]]


def is_refresh(file: Path) -> bool:
    """Whether a file is the record of a refresh (``RUN/negatives/refresh-00001.jsonl``) and no file of rows."""
    first = read_jsonl(file).objects[:1] if file.suffix == ".jsonl" and file.is_file() else []
    return bool(first) and {"format", "number", "counts"} <= first[0].keys()


def negatives_of_rows(file: Path, image_root: Path | None) -> Iterator[Shown]:
    """Every row of a file with its negatives.

    Raises:
        DataError: a row that cannot be read.
    """
    root = resolve_root(file, image_root)
    for record, source in read_records(file):
        if isinstance(record, DataError):
            raise record
        row = row_from_record(record, source=source, image_root=root)
        yield row, list(_negatives(record, row))


def negatives_of_refresh(file: Path, rows: Mapping[int, Row], weigh: Weigh | None = None) -> Iterator[Shown]:
    """The rows that a refresh sampled for, with all that was sampled; what was dropped has its reason as its kind.

    Args:
        file: of the refresh.
        rows: those that it sampled for, by their place in training.
        weigh: where the run's floor is known.

    Raises:
        UserError: the file is damaged, or belongs to other rows.
    """
    found: dict[int, list[Negative]] = {}
    for candidate in read_refresh(file).candidates:
        row = rows.get(candidate.row)
        if row is None or row.id != candidate.id:
            raise UserError(
                f"{file}: was sampled for other rows: its row {candidate.row} has the id {candidate.id!r}. Give the "
                "data that the run was trained on with --data."
            )
        right, wrong = marked(row.chosen, candidate.text)
        weight = None if weigh is None or candidate.lbar is None else weigh(candidate.lbar)
        kind = candidate.reason or ""
        found.setdefault(candidate.row, []).append(
            Negative(right, wrong, "on_policy", kind, lbar=candidate.lbar, weight=weight)
        )
    for place, negatives in sorted(found.items()):
        yield rows[place], negatives


def _negatives(record: Mapping[str, Any], row: Row) -> Iterator[Negative]:
    texts = [("rejected" if index == 0 else "negatives", text) for index, text in enumerate(row.rejected)]
    if row.gentle is not None:
        texts.insert(0, ("gentle", row.gentle))
    edit = record.get("gentle_edit")
    edit = edit if isinstance(edit, Mapping) else {}
    for place, (column, text) in enumerate(texts):
        of_gentle = _marked_by(edit, row.chosen, text) if column == "gentle" else None
        right, wrong = of_gentle or marked(row.chosen, text)
        kind = str(edit.get("kind", "")) if column == "gentle" else (row.kind or "" if column == "rejected" else "")
        measured = {name: _measured(record.get(name), texts, place) for name in ("lbar", "ches", "w_c")}
        yield Negative(right, wrong, column, kind, lbar=measured["lbar"], ches=measured["ches"], weight=measured["w_c"])


def _marked_by(edit: Mapping[str, Any], right: str, wrong: str) -> tuple[Marked, Marked] | None:
    """The marks that the edit itself tells; None where it is not that of these two texts."""
    parts = edit.get("parts", [edit])
    try:
        ours, theirs = (
            _pieces(text, [part[side] for part in parts]) for text, side in ((right, "before"), (wrong, "after"))
        )
    except (TypeError, ValueError, KeyError):
        return None
    same = [[text for text, differs in pieces if not differs] for pieces in (ours, theirs)]
    return (ours, theirs) if parts and same[0] == same[1] else None


def _pieces(text: str, spans: Sequence[Sequence[int]]) -> Marked:
    """A text with its spans marked; the texts between them are there even where they are empty."""
    pieces: Marked = []
    end = 0
    for start, stop in spans:
        if not end <= start <= stop <= len(text):
            raise ValueError("the spans are not those of the text")
        pieces += [(text[end:start], False), (text[start:stop], True)]
        end = stop
    return [*pieces, (text[end:], False)]


def _measured(value: Any, texts: Sequence[tuple[str, str]], place: int) -> float | None:
    """The number that belongs to one of a row's negatives."""
    column = texts[place][0]
    if isinstance(value, Mapping):
        value = value.get(column)
        earlier = [name for name, _ in texts[:place]].count(column)
    else:
        earlier = place - sum(name == "gentle" for name, _ in texts)
        if not isinstance(value, list):
            return finite(value) if len(texts) == 1 else None
    if isinstance(value, list):
        return finite(value[earlier]) if 0 <= earlier < len(value) else None
    return finite(value)
