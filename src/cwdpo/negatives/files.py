"""Negatives of whole files, without a server: gentle ones, mixed ones, filtered ones.

Rows in, rows out, and everything else in a row as it was. ``data`` is a file of rows in any format that is read here,
``out`` the JSON lines to write, which must not exist, ``image_root`` as in :func:`cwdpo.data.reading.read_rows`.
"""

import difflib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from cwdpo.config.limits import Fraction, check_fraction
from cwdpo.config.recipe import Recipe
from cwdpo.data.formats import OWN_COLUMNS, format_keys, format_of, plain_record, row_from_record
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.messages import read_answer
from cwdpo.data.reading import read_records, read_rows, split_rows
from cwdpo.data.rows import Row
from cwdpo.data.sources import data_files, hub_name, resolve_root
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.candidates import read_refresh
from cwdpo.negatives.filtering import (
    Hardness,
    RightAnswers,
    Rules,
    filter_negatives,
    hardness_reason,
    normalised,
    threshold,
)
from cwdpo.negatives.gentle import GentleNegative, checked_kinds, edits_by_kind, gentle_negative
from cwdpo.negatives.gentle.edits import Reading
from cwdpo.negatives.gentle.lexicon import Lexicon
from cwdpo.negatives.mixing import fraction_at, hashed, mix_negatives
from cwdpo.records import check_place, write_text


@dataclass
class Coverage:
    """What the lexicon could do with a file of rows."""

    rows: int = 0
    made: Counter[str] = field(default_factory=Counter)
    """Negatives made, by kind."""

    possible: Counter[str] = field(default_factory=Counter)
    """Rows whose answer allows an edit of the kind."""

    without: list[str] = field(default_factory=list)
    """``file:line`` of rows that no edit was found for; they are kept, without ``gentle``."""

    def to_json(self) -> dict[str, Any]:
        counts = {"rows": self.rows, "with_gentle": self.rows - len(self.without), "without_gentle": len(self.without)}
        return {**counts, "made": dict(self.made), "possible": dict(self.possible)}


def write_gentle(
    data: Path,
    out: Path,
    *,
    lexicon: Lexicon,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    column: str = "chosen",
    positives: str | None = None,
    image_root: GivenRoots = None,
) -> Coverage:
    """Give every row of a file a gentle negative of its answer, as far as the lexicon can.

    It stands under ``gentle``, with its kind and spans under ``gentle_edit``; an older one goes. What a row gets
    depends on the seed, its place in the file and its text, not on the rows before it. ``column`` has the right answer
    (``chosen`` is the preferred one in every format), ``positives`` a list of further ones, which no negative may
    equal, nor what is right for another row of the same prompt and images, nor a paraphrase (``longer``, ``shorter``).
    """
    check_new_rows(out)
    wanted = checked_kinds(kinds)
    coverage, lines = Coverage(), []
    rows = list(rows_with_records(data, image_root))
    right_answers = RightAnswers(row for _, row in rows)
    for number, (record, row) in enumerate(rows):
        answer, others = _answers(record, row, column, positives)
        rng = random.Random(hashed(seed, "gentle", number, answer))
        prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
        avoid = [*others, *right_answers(row)]
        made = gentle_negative(answer, lexicon=lexicon, rng=rng, kinds=wanted, avoid=avoid, prompt=prompt)
        coverage.rows += 1
        coverage.possible.update(list(edits_by_kind(Reading(answer, lexicon), prompt)))
        if made is None:
            coverage.without.append(row.source)
        else:
            coverage.made[made.kind] += 1
        lines.append(json_line(with_gentle(record, made), row.source))
    write_text(out, "".join(lines))
    return coverage


@dataclass(frozen=True, slots=True)
class Mixed:
    """What was chosen from where."""

    rows: int
    sources: Counter[str]
    without_samples: int
    unused_ids: tuple[str, ...]
    """Ids of samples that no row has."""


def write_mixed(
    data: Path,
    on_policy: Path,
    out: Path,
    *,
    fraction: Fraction,
    seed: int = 0,
    round: int = 0,
    progress: float = 0.0,
    count: int | None = None,
    image_root: GivenRoots = None,
) -> Mixed:
    """Choose every row's ``rejected`` (and ``negatives`` from the second on) by
    :func:`cwdpo.negatives.mixing.mix_negatives`, with ``negative_sources`` beside them.

    Args:
        data: rows with ids, or else named by their number in the file, from 0.
        on_policy: JSON lines of ``{"id": ..., "negatives": [...]}``; an id may come more than once.
        progress: where in the run a schedule is read, from 0 to 1; the others as in ``mix_negatives``.
    """
    check_new_rows(out)
    check_fraction(fraction)
    share, samples = fraction_at(fraction, progress), _read_samples(on_policy)
    sources, without_samples, lines = Counter[str](), 0, []
    rows = list(rows_with_records(data, image_root))
    names, right_answers = row_ids([row for _, row in rows]), RightAnswers(row for _, row in rows)
    for row_id, (record, row) in zip(names, rows, strict=True):
        right = {normalised(text) for text in right_answers(row)}
        sampled = [text for text in samples.get(row_id, []) if normalised(text) not in right]
        chosen = mix_negatives(
            row.rejected, sampled, fraction=share, seed=seed, row_id=row_id, round=round, count=count
        )
        if not chosen:
            raise DataError(f"{row.source}: the row has no negative of either kind. Add `rejected`, or samples.")
        origins = [negative.source for negative in chosen]
        sources.update(origins)
        without_samples += not sampled
        new = with_negatives(_with_place(record, row), [negative.text for negative in chosen]) | {
            "negative_sources": origins
        }
        lines.append(json_line(new, row.source))
    write_text(out, "".join(lines))
    used = set(names)
    return Mixed(len(rows), sources, without_samples, tuple(row_id for row_id in samples if row_id not in used))


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
    measure: Callable[[Sequence[Row]], Sequence[Sequence[Hardness]]] | None = None,
    weigh: Callable[[float], float] | None = None,
    image_root: GivenRoots = None,
) -> FilterReport:
    """Take negatives out of a file; a row that loses all of them is left out.

    What a model measured is written into the rows, in the order of their negatives: ``lbar`` and ``ches``, and ``w_c``
    where a weight is known. ``negative_sources`` and the like keep the values of the negatives that are left.

    Args:
        rules: on the texts alone; right is what any row of the same prompt and images prefers.
        drop_easier_than: floor of lbar in nats per token, or ``quantile:q`` of the file's.
        drop_ches_above: ceiling of the length-normalised CHES, or ``quantile:q`` of the file's.
        measure: the hardness of every negative of some rows; needed for the last two.
        weigh: w_c by lbar, of a run whose floor is known.
    """
    needs_model = drop_easier_than is not None or drop_ches_above is not None
    assert measure is not None or not needs_model, "a model is needed to measure hardness"
    check_new_rows(out)
    rows = list(rows_with_records(data, image_root))
    hardness = None if measure is None else measure([row for _, row in rows])
    every = [one for of_row in hardness or () for one in of_row]
    floor = threshold([one.lbar for one in every], drop_easier_than) if every and drop_easier_than is not None else None
    ceiling = threshold([one.ches for one in every], drop_ches_above) if every and drop_ches_above is not None else None
    right_answers, counts, lines = RightAnswers(row for _, row in rows), Counter[str](), []
    for place, (record, row) in enumerate(rows):
        reasons = filter_negatives(right_answers(row), row.rejected, rules)
        counts.update(filter(None, reasons))
        measured = hardness[place] if hardness is not None else ()
        for index, one in enumerate(measured):
            if reasons[index] is None:
                reasons[index] = hardness_reason(lbar=one.lbar, floor=floor, ches=one.ches, ceiling=ceiling)
                counts.update(filter(None, reasons[index : index + 1]))
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        if not kept:
            continue
        counts["kept"] += len(kept)
        new = with_negatives(_with_place(record, row), [row.rejected[index] for index in kept], kept)
        if measured:
            lbars = [measured[index].lbar for index in kept]
            new |= {"lbar": lbars, "ches": [measured[index].ches for index in kept]}
            if weigh is not None:
                new["w_c"] = [weigh(lbar) for lbar in lbars]
        lines.append(json_line(new, row.source))
    if not lines:
        why = ", ".join(f"{number} {reason}" for reason, number in counts.most_common()) or "there was none"
        raise UserError(f"{data}: no negative would be left ({why}), so nothing is written. Loosen the filters.")
    write_text(out, "".join(lines))
    return FilterReport(len(rows), len(lines), counts, floor, ceiling)


def check_new_rows(out: Path) -> None:
    """A UserError where no new file can be written, or under a name by which its rows would not be read."""
    check_place(out)
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: rows are written as JSON lines. Write --out {out.with_suffix('.jsonl')}.")


def rows_with_records(data: Path, image_root: GivenRoots) -> Iterator[tuple[Mapping[str, Any], Row]]:
    """Every row of a file as it is written there and as it is read."""
    roots = resolve_root(data, image_root)
    for record, source in _readable(data):
        yield record, row_from_record(record, source=source, roots=roots)


def _readable(file: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each record with its ``file:line``; one that cannot be read is raised."""
    for record, source in read_records(file):
        if isinstance(record, DataError):
            raise record
        yield record, source


def row_ids(rows: Sequence[Row]) -> list[str]:
    """The name of each row for samples: its id, or where it has none its number in the file, from 0."""
    names = [row.id or str(number) for number, row in enumerate(rows)]
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        earlier = first.setdefault(name, number)
        if earlier != number:
            raise DataError(
                f"{rows[number].source}: the id {name!r} is also that of {rows[earlier].source}, and samples belong to "
                "rows by id. Give every row an id of its own."
            )
    return names


def what_was_read(data: Path, image_root: GivenRoots) -> dict[str, str]:
    """A hash of a data set's content and where its pictures are: other rows under the same name differ in it."""
    content = xxhash.xxh3_128()
    if hub_name(data) is not None:
        for record, _ in _readable(data):
            content.update(repr(record).encode("utf-8", "surrogateescape"))
    for part in [] if hub_name(data) is not None else data_files(data):
        for file in sorted(path for path in part.rglob("*") if path.is_file()) if part.is_dir() else [part]:
            content.update(str(file.relative_to(part)).encode("utf-8", "surrogateescape"))
            with file.open("rb") as opened:
                while block := opened.read(2**20):
                    content.update(block)
    return {"data": content.hexdigest(), "image_root": str(resolve_root(data, image_root).start)}


def json_line(record: Mapping[str, object], source: str) -> str:
    """A record as a line of JSON; a DataError where it holds what JSON cannot, such as the bytes of an image."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"{source}: cannot be written as a line of JSON: {problem}. Save images as files beside the data and "
            "name their paths in `images`."
        ) from problem


def rows_sampled_for(
    path: Path, recipe: Recipe | None, *, data: Path | None = None, image_root: GivenRoots = None
) -> dict[int, Row]:
    """The rows of stage 2 that a refresh sampled for, by their place in training: ``data``, or by default those of its
    run's recipe. Where a file has lost its run, its candidates name them."""
    if recipe is not None:
        train = recipe.data.train
        files = [str(data)] if data is not None else [train] if isinstance(train, str) else train
        root = image_root or (None if data is not None else recipe.data.image_root_path)
        rows = [row for file in files for row in read_rows(Path(file), image_root=root)]
        if recipe.stage1 is not None:
            _, rows = split_rows(rows, recipe.data.stage1_fraction, recipe.seed)
        return dict(enumerate(rows))
    if data is None:
        raise UserError(f"{path}: what a refresh sampled for is not beside it. Name its rows with --data ROWS.")
    known = {row.id: row for row in read_rows(data, image_root=image_root) if row.id}
    found = {}
    for candidate in read_refresh(path).candidates:
        if candidate.id not in known:
            raise UserError(
                f"{path}: was sampled for a row with the id {candidate.id!r}, which --data does not have. Name the "
                "data of the run, or leave the file in the run's directory, beside its recipe.yaml."
            )
        found[candidate.row] = known[candidate.id]
    return found


OF_EACH = tuple(name for name in OWN_COLUMNS if name != "gentle_edit")
"""Columns with a value for each negative: a list, an object by column, or one value for one negative."""

_NEGATIVES = ("rejected", "rejected_response", "negatives", "rejected_messages", "rejected_conversations")
_PLACES: Mapping[str, str | None] = {
    **dict.fromkeys(("trl", "flat", "trl-implicit", "trl-completion", "hh", "llamafactory", "rlaif-v"), "rejected"),
    "ms-swift": "rejected_response",
    **dict.fromkeys(("llava", "povid"), None),  # there a rejected answer of one text would make it another format
}
"""Where formats have the first negative; None: only ``negatives``. Rows of others are written in the canonical form."""


def with_negatives(record: Mapping[str, object], texts: Sequence[str], kept: Sequence[int] = ()) -> dict[str, Any]:
    """The record with these negatives, one at least, in the place of its own. Where they are some of its own, ``kept``
    are their places among them: what the record says of them is kept, and what it says of others goes."""
    further = record.get("negatives")
    own = int(any(record.get(name) is not None for name in _NEGATIVES if name != "negatives"))
    own += len(further) if isinstance(further, list) else 0
    new = {key: value for key, value in record.items() if key not in (*_NEGATIVES, *OF_EACH)}
    rest = list(texts)
    place = _PLACES.get(format_of(record), "rejected")
    if place is not None:
        new[place] = rest.pop(0)
    if rest:
        new["negatives"] = rest
    for name in OF_EACH:
        value = _of_kept(record.get(name), kept, own)
        if value is not None:
            new[name] = value
    return new


def _with_place(record: Mapping[str, Any], row: Row) -> Mapping[str, Any]:
    """The record, in the canonical form where its own has no place for a negative that is not its own."""
    if format_of(record) in _PLACES:
        return record
    if row.images and not {"images", "image"} & record.keys():
        raise DataError(f"{row.source}: its images stand in its messages. List them in `images`, to give it negatives.")
    kept = {key: value for key, value in record.items() if key not in format_keys(record)}
    first, *rest = row.rejected or (None,)
    own = ({} if first is None else {"rejected": first}) | ({"negatives": rest} if rest else {})
    return kept | plain_record(row) | own


def with_gentle(record: Mapping[str, object], made: GentleNegative | None) -> dict[str, Any]:
    """The record with this gentle negative, or with none, in the place of an older one."""
    new = {key: value for key, value in record.items() if key not in ("gentle", "gentle_edit")}
    for name in OF_EACH:
        values = new.get(name)
        if isinstance(values, Mapping):  # without what it says of the older one
            new[name] = {column: value for column, value in values.items() if column != "gentle"}
    if made is not None:
        edit: dict[str, Any] = {"kind": made.kind, "before": list(made.before), "after": list(made.after)}
        if len(made.parts) > 1:
            edit["parts"] = [{"before": list(before), "after": list(after)} for before, after in made.parts]
        new |= {"gentle": made.text, "gentle_edit": edit}
    return new


def _of_kept(value: object, kept: Sequence[int], own: int) -> object:
    """A column's value for the kept of a record's ``own`` negatives; None where it is not clear which is whose."""
    if isinstance(value, Mapping):
        gentle = {"gentle": value["gentle"]} if "gentle" in value else {}
        further = value.get("negatives") or []
        values = [value.get("rejected"), *(further if isinstance(further, list) else [further])]
        chosen = [values[place] for place in kept if place < len(values)]
        if len(values) != own or len(chosen) != len(kept) or not chosen:
            return gentle or None
        return gentle | {"rejected": chosen[0]} | ({"negatives": chosen[1:]} if chosen[1:] else {})
    if isinstance(value, list):
        return [value[place] for place in kept] if kept and len(value) == own else None
    return value if own == len(kept) == 1 else None


def _answers(record: Mapping[str, object], row: Row, column: str, positives: str | None) -> tuple[str, list[str]]:
    """The answer to edit, and the further right answers that its own column names."""
    answer = row.chosen
    if column != "chosen":
        if record.get(column) is None:
            near = difflib.get_close_matches(column, record, n=1)
            advice = f"Did you mean --column {near[0]}?" if near else "Name its column with --column, or add it."
            raise DataError(f"{row.source}: the row has no `{column}`. {advice}")
        answer = read_answer(record[column], f"{row.source}: `{column}`")
    others = record.get(positives) if positives is not None else None
    if others is not None and not (isinstance(others, list) and all(isinstance(item, str) for item in others)):
        raise DataError(f"{row.source}: `{positives}` must be a list of right answers, as texts.")
    return answer, list(others or [])


def _read_samples(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record, source in _readable(path):
        row_id, texts = record.get("id"), record.get("negatives")
        if row_id is None or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f'{source}: a line of samples must be {{"id": "row-1", "negatives": ["...", "..."]}}.')
        found.setdefault(str(row_id), []).extend(texts)
    return found
