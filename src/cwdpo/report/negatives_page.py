"""One HTML page of negatives: the picture, the right answer, the wrong one, and how hard the model finds it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cwdpo.data.formats import row_from_record
from cwdpo.data.parsing import read_records
from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.records.files import write_text
from cwdpo.report.gallery import UNREADABLE, picture_uri
from cwdpo.report.marks import Marked, marked
from cwdpo.report.page import content_policy, resource
from cwdpo.report.series import finite


@dataclass(frozen=True)
class Card:
    """One negative beside the answer it belongs to."""

    place: int
    """In the order of the file."""

    row: str
    image: str | None
    small: bool
    prompt: str
    right: Marked
    wrong: Marked
    column: str
    """``gentle``, ``rejected`` or ``negatives``."""

    kind: str
    lbar: float | None
    """Mean log-probability, nats per token, where the row has it: the higher, the harder."""

    weight: float | None
    """w_c, where the row has it."""


def write_negatives_page(file: Path, out: Path, *, image_root: Path | None = None, limit: int = 200) -> Path:
    """Write one self-contained page about a file's negatives; an older page is replaced.

    ``lbar`` and ``w_c`` of a row are a number (its one negative), a list (its ``rejected`` and ``negatives`` in order)
    or an object by column, such as ``{"gentle": -1.2, "rejected": -0.4, "negatives": [-3.1]}``.

    Args:
        file: rows in any format that is read here.
        out: the page.
        image_root: where relative image paths start; by default the file's directory.
        limit: rows on the page; the page says how many more there are.

    Raises:
        UserError: nothing to show, or ``out`` cannot be written.
    """
    if out.is_dir():
        raise UserError(f"{out} is a directory. Name the file to write, for example {out / 'negatives.html'}.")
    notes: list[str] = []
    rows = _rows(file, image_root)
    shown = list(islice(rows, limit))
    more = sum(1 for _ in rows)
    if more:
        notes.append(f"Only the first {limit} rows are shown; the file has {more} more. --limit shows more of them.")
    cards = [card for record, row in shown for card in _cards(record, row, notes)]
    cards = [Card(**{**vars(card), "place": place}) for place, card in enumerate(cards)]
    if not cards:
        raise UserError(f"{file}: no row has a negative. Make some with `cwdpo negatives gentle {file} --out ...`.")
    try:
        write_text(out, _page(file.name, cards, len(shown), notes))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}. Name a file in a directory you may write to.") from error
    return out


def _page(name: str, cards: Sequence[Card], num_rows: int, notes: Sequence[str]) -> str:
    style, script = Markup(resource("page.css") + resource("negatives.css")), Markup(resource("negatives.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(resource("negatives.html.j2")).render(
        title=f"Negatives of {name}",
        policy=content_policy(style, script),
        style=style,
        script=script,
        cards=cards,
        num_rows=num_rows,
        kinds=_counted(card.kind or card.column for card in cards),
        measured=any(card.lbar is not None or card.weight is not None for card in cards),
        notes=notes,
    )
    return page.encode("utf-8", "replace").decode()


def _rows(file: Path, image_root: Path | None) -> Iterator[tuple[Mapping[str, Any], Row]]:
    root = resolve_root(file, image_root)
    for record, source in read_records(file):
        if isinstance(record, DataError):
            raise record
        yield record, row_from_record(record, source=source, image_root=root)


def _cards(record: Mapping[str, Any], row: Row, notes: list[str]) -> Iterator[Card]:
    negatives = [("rejected" if index == 0 else "negatives", text) for index, text in enumerate(row.rejected)]
    if row.gentle is not None:
        negatives.insert(0, ("gentle", row.gentle))
    image, small = _picture(row, notes) if negatives else (None, False)
    edit = record.get("gentle_edit")
    gentle_kind = edit.get("kind", "") if isinstance(edit, Mapping) else ""
    prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
    for place, (column, text) in enumerate(negatives):
        right, wrong = marked(row.chosen, text)
        yield Card(
            place=0,
            row=row.id or row.source.rpartition(":")[2],
            image=image,
            small=small,
            prompt=prompt,
            right=right,
            wrong=wrong,
            column=column,
            kind=str(gentle_kind) if column == "gentle" else (row.kind or "" if column == "rejected" else ""),
            lbar=_measured(record.get("lbar"), negatives, place),
            weight=_measured(record.get("w_c"), negatives, place),
        )


def _measured(value: Any, negatives: Sequence[tuple[str, str]], place: int) -> float | None:
    """The number that belongs to one of a row's negatives."""
    column = negatives[place][0]
    if isinstance(value, Mapping):
        value = value.get(column)
        earlier = [name for name, _ in negatives[:place]].count(column)
    else:
        earlier = place - sum(name == "gentle" for name, _ in negatives)
        if not isinstance(value, list):
            return finite(value) if len(negatives) == 1 else None
    if isinstance(value, list):
        return finite(value[earlier]) if 0 <= earlier < len(value) else None
    return finite(value)


def _picture(row: Row, notes: list[str]) -> tuple[str | None, bool]:
    for image in row.images[:1]:
        try:
            if isinstance(image, Path | bytes):
                return picture_uri(image)
        except UNREADABLE as error:
            notes.append(f"row {row.id or row.source}: its picture cannot be shown: {error}.")
    return None, False


def _counted(names: Iterator[str]) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))
