"""One HTML page of negatives: the picture, the right answer, the wrong one, and how hard the model finds it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.records.files import write_text
from cwdpo.report.gallery import UNREADABLE, picture_uri
from cwdpo.report.negatives_read import Negative, Shown, Weigh, negatives_of_refresh, negatives_of_rows
from cwdpo.report.page import content_policy, resource

GENERATOR = "cwdpo negatives show"
"""How a page says that it is one of ours, so that a newer one may take its place."""

_MOST_HEAD = 8192


@dataclass(frozen=True)
class Card:
    """One negative beside the answer it belongs to."""

    place: int
    """In the order of the file."""

    row: str
    image: str | None
    small: bool
    prompt: str
    negative: Negative


def write_negatives_page(
    file: Path,
    out: Path,
    *,
    image_root: Path | None = None,
    limit: int = 200,
    sampled_for: Mapping[int, Row] | None = None,
    weigh: Weigh | None = None,
) -> Path:
    """Write one self-contained page about a file's negatives; an older page is replaced, and nothing else.

    ``lbar``, ``ches`` and ``w_c`` of a row are a number (its one negative), a list (its ``rejected`` and ``negatives``
    in order) or an object by column, such as ``{"gentle": -1.2, "rejected": -0.4, "negatives": [-3.1]}``.

    Args:
        file: rows in any format that is read here, or the record of a refresh.
        out: the page.
        image_root: where relative image paths start; by default the file's directory.
        limit: rows on the page; the page says how many more there are.
        sampled_for: of a refresh, the rows that it sampled for, by their place in training.
        weigh: of a refresh, what its run gives an answer for a weight.

    Raises:
        UserError: nothing to show, ``out`` is something else than a page of ours, or cannot be written.
    """
    refuse_to_replace(file, out)
    notes: list[str] = []
    found = (
        negatives_of_rows(file, image_root) if sampled_for is None else negatives_of_refresh(file, sampled_for, weigh)
    )
    shown = list(islice(found, limit))
    more = sum(1 for _ in found)
    if more:
        notes.append(f"Only the first {limit} rows are shown; the file has {more} more. --limit shows more of them.")
    cards = list(_cards(shown, notes))
    if not cards:
        raise UserError(f"{file}: no row has a negative. Make some with `cwdpo negatives gentle {file} --out ...`.")
    try:
        write_text(out, _page(file.name, cards, len(shown), notes))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}. Name a file in a directory you may write to.") from error
    return out


def refuse_to_replace(file: Path, out: Path) -> None:
    """Only an older page of ours is replaced, never data.

    Raises:
        UserError: ``out`` is the file itself, a directory, or something that is no page of ours.
    """
    if out.is_dir():
        raise UserError(f"{out} is a directory. Name the file to write, for example {out / 'negatives.html'}.")
    if not out.exists():
        return
    if file.exists() and out.samefile(file):
        raise UserError(f"--out names the data, {file}, which the page would replace. Name a file such as page.html.")
    try:
        with out.open("rb") as there:
            is_ours = f'content="{GENERATOR}"'.encode() in there.read(_MOST_HEAD)
    except OSError as error:
        raise UserError(f"cannot read {out}: {error}. Name another file.") from error
    if not is_ours:
        raise UserError(f"{out} exists and is no page that this command wrote. Name another file, or take it away.")


def _page(name: str, cards: Sequence[Card], num_rows: int, notes: Sequence[str]) -> str:
    style, script = Markup(resource("page.css") + resource("negatives.css")), Markup(resource("negatives.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    negatives = [card.negative for card in cards]
    page = environment.from_string(resource("negatives.html.j2")).render(
        title=f"Negatives of {name}",
        generator=GENERATOR,
        policy=content_policy(style, script),
        style=style,
        script=script,
        cards=cards,
        num_rows=num_rows,
        kinds=_counted(one.kind or one.column for one in negatives),
        measured=any(one.lbar is not None or one.weight is not None for one in negatives),
        compared=any(one.ches is not None for one in negatives),
        notes=notes,
    )
    return page.encode("utf-8", "replace").decode()


def _cards(shown: Sequence[Shown], notes: list[str]) -> Iterator[Card]:
    place = 0
    for row, negatives in shown:
        image, small = _picture(row, notes) if negatives else (None, False)
        prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
        for negative in negatives:
            yield Card(place, row.id or row.source.rpartition(":")[2], image, small, prompt, negative)
            place += 1


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
