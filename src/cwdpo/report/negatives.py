"""One HTML page of negatives: the picture, the right answer, the wrong one, and how hard the model finds it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cwdpo.data.formats import row_from_record
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.reading import read_records
from cwdpo.data.rows import Row, StoredImage
from cwdpo.data.sources import resolve_root
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.candidates import read_refresh
from cwdpo.records import read_jsonl, write_text
from cwdpo.report.charts import finite
from cwdpo.report.examples import read_picture
from cwdpo.report.page import content_policy, is_page_of, resource

Marked: TypeAlias = list[tuple[str, bool]]
"""A text in pieces, each with whether it differs from the other text."""

_PIECES = re.compile(r"\s+|\w+(?:[-'\u2019]\w+)*|[^\w\s]")
_MOST_PIECES = 600
_LEAST_ALIKE = 0.6


def marked(right: str, wrong: str) -> tuple[Marked, Marked]:
    """Both texts in pieces; unmarked where they have too little in common, or are too long, for marks to help.

    Example:
        >>> marked("a red car", "a blue car")
        ([('a ', False), ('red', True), (' car', False)], [('a ', False), ('blue', True), (' car', False)])
    """
    first, second = _PIECES.findall(right), _PIECES.findall(wrong)
    matcher = SequenceMatcher(None, first, second, autojunk=False)
    if max(len(first), len(second)) > _MOST_PIECES or matcher.ratio() < _LEAST_ALIKE:
        return [(right, False)], [(wrong, False)]
    ours: Marked = []
    theirs: Marked = []
    for operation, start, end, other_start, other_end in matcher.get_opcodes():
        for pieces, texts in ((ours, first[start:end]), (theirs, second[other_start:other_end])):
            if texts:
                pieces.append(("".join(texts), operation != "equal"))
    return ours, theirs


Weigh: TypeAlias = Callable[[float], float]


class Negative(NamedTuple):
    """One wrong answer, marked beside the right one, and how hard it is where the file has that."""

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
    """Whether a file is the record of a refresh (``RUN/negatives/refresh-00001.jsonl``) and not a file of rows."""
    first = read_jsonl(file).objects[:1] if file.suffix == ".jsonl" and file.is_file() else []
    return bool(first) and {"format", "number", "counts"} <= first[0].keys()


def negatives_of_rows(file: Path, image_root: GivenRoots) -> Iterator[Shown]:
    """Every row of a file with its negatives; a DataError for a row that cannot be read."""
    roots = resolve_root(file, image_root)
    for record, source in read_records(file):
        if isinstance(record, DataError):
            raise record
        row = row_from_record(record, source=source, roots=roots)
        yield row, list(_negatives(record, row))


def negatives_of_refresh(file: Path, rows: Mapping[int, Row], weigh: Weigh | None = None) -> Iterator[Shown]:
    """The rows that a refresh sampled for, with all samples; the kind of a dropped one is the reason.

    ``rows`` has them by their place in training; a UserError where the file is damaged, or belongs to other rows.
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
        negative = Negative(right, wrong, "on_policy", candidate.reason or "", lbar=candidate.lbar, weight=weight)
        found.setdefault(candidate.row, []).append(negative)
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
        kind = {"gentle": str(edit.get("kind", "")), "rejected": row.kind or ""}.get(column, "")
        measured = (_measured(record.get(name), texts, place) for name in ("lbar", "ches", "w_c"))
        yield Negative(right, wrong, column, kind, *measured)


def _marked_by(edit: Mapping[str, Any], right: str, wrong: str) -> tuple[Marked, Marked] | None:
    """The marks that the edit itself records; None where it is not that of these two texts."""
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
    columns = [column for column, _ in texts]
    if isinstance(value, Mapping):
        value = value.get(columns[place])
        earlier = columns[:place].count(columns[place])
    else:
        earlier = place - columns.count("gentle")
        if not isinstance(value, list) and len(texts) > 1:
            return None
    if isinstance(value, list):
        return finite(value[earlier]) if 0 <= earlier < len(value) else None
    return finite(value)


GENERATOR = "cwdpo negatives show"
"""Named in the head of every page, so that ours are recognised and may be replaced."""


class Card(NamedTuple):
    """One negative beside the answer it belongs to, at its place in the file."""

    place: int
    row: str
    image: str | None
    small: bool
    prompt: str
    negative: Negative


def write_negatives_page(
    file: Path,
    out: Path,
    *,
    image_root: GivenRoots = None,
    limit: int = 200,
    sampled_for: Mapping[int, Row] | None = None,
    weigh: Weigh | None = None,
) -> Path:
    """Write one self-contained page about a file's negatives; an older page is replaced, and nothing else.

    ``lbar``, ``ches`` and ``w_c`` of a row are a number (its one negative), a list (its ``rejected`` and ``negatives``
    in order) or an object by column, such as ``{"gentle": -1.2, "rejected": -0.4, "negatives": [-3.1]}``.

    The file has rows in any format that is read here, or is the record of a refresh: then ``sampled_for`` has the rows
    that it sampled for, by their place in training, and ``weigh`` gives w_c by lbar, where the run's floor is known.
    Relative image paths start at ``image_root``, by default the file's directory. Beyond ``limit`` rows, the page says
    how many more there are. A UserError where there is nothing to show, or ``out`` cannot be written or replaced.
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
    """A UserError where ``out`` is there and is anything but an older page of ours: data is never replaced."""
    if out.is_dir():
        raise UserError(f"{out} is a directory. Name the file to write, for example {out / 'negatives.html'}.")
    if not out.exists():
        return
    if file.exists() and out.samefile(file):
        raise UserError(f"--out names the data, {file}, which the page would replace. Name a file such as page.html.")
    try:
        is_ours = is_page_of(GENERATOR, out)
    except OSError as error:
        raise UserError(f"cannot read {out}: {error}. Name another file.") from error
    if not is_ours:
        raise UserError(f"{out} exists and is not a page of this command. Name another file, or remove it.")


def _page(name: str, cards: Sequence[Card], num_rows: int, notes: Sequence[str]) -> str:
    style, script = Markup(resource("page.css") + resource("negatives.css")), Markup(resource("negatives.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    negatives = [card.negative for card in cards]
    kinds = Counter(one.kind or one.column for one in negatives)
    page = environment.from_string(resource("negatives.html.j2")).render(
        title=f"Negatives of {name}",
        generator=GENERATOR,
        policy=content_policy(style, script),
        style=style,
        script=script,
        cards=cards,
        num_rows=num_rows,
        kinds=sorted(kinds.items(), key=lambda item: (-item[1], item[0])),
        measured=any(one.lbar is not None or one.weight is not None for one in negatives),
        compared=any(one.ches is not None for one in negatives),
        notes=notes,
    )
    return page.encode("utf-8", "replace").decode()


def _cards(shown: Sequence[Shown], notes: list[str]) -> Iterator[Card]:
    place = 0
    for row, negatives in shown:
        first = row.images[0] if negatives and row.images else None
        name = f"row {row.id or row.source}: its picture"
        first = first.read() if isinstance(first, StoredImage) else first
        picture = read_picture(first, notes, name) if isinstance(first, Path | bytes) else None
        image, small = picture or (None, False)
        prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
        for negative in negatives:
            yield Card(place, row.id or row.source.rpartition(":")[2], image, small, prompt, negative)
            place += 1
