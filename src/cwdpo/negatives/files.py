"""Negatives of whole files: rows in, rows out, everything else in a row as it was."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.config.limits import Fraction
from cwdpo.data.formats import format_of, read_answer, row_from_record
from cwdpo.data.reading import read_records, resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.filtering import Rules, filter_negatives, normalised
from cwdpo.negatives.gentle import GentleNegative, checked_kinds, edits_by_kind, gentle_negative
from cwdpo.negatives.gentle.lexicon import Lexicon
from cwdpo.negatives.gentle.text import Reading
from cwdpo.negatives.hardness import TOO_EASY, Hardness, threshold
from cwdpo.negatives.mixing import MixedNegative, fraction_at, hashed, mix_negatives
from cwdpo.negatives.verify import RightAnswers
from cwdpo.records import write_text

OF_EACH = ("negative_sources", "lbar", "ches", "w_c")
"""Columns with a value for each negative: a list, an object by column, or one value for one negative."""

_NEGATIVES = ("rejected", "rejected_response", "negatives")


def with_negatives(record: Mapping[str, Any], texts: Sequence[str], kept: Sequence[int] = ()) -> dict[str, Any]:
    """The record with these negatives, one at least, in the place of its own.

    Args:
        record: as it stands in the file.
        texts: the negatives that it will have.
        kept: where they are some of its own, their places among them; what the record says of them is kept with
            them. What it says of others goes.
    """
    own = _number_of_negatives(record)
    new = {key: value for key, value in record.items() if key not in (*_NEGATIVES, *OF_EACH)}
    rest = list(texts)
    if format_of(record) != "llava":  # there a rejected answer would make it another format
        new["rejected_response" if format_of(record) == "ms-swift" else "rejected"] = rest.pop(0)
    if rest:
        new["negatives"] = rest
    for name in OF_EACH:
        value = _in_step(record.get(name), kept, own)
        if value is not None:
            new[name] = value
    return new


def with_gentle(record: Mapping[str, Any], made: GentleNegative | None) -> dict[str, Any]:
    """The record with this gentle negative, or with none, in the place of an older one."""
    new = {key: value for key, value in record.items() if key not in ("gentle", "gentle_edit")}
    for name in OF_EACH:
        if isinstance(new.get(name), Mapping):  # what it says of the older one
            new[name] = {column: value for column, value in new[name].items() if column != "gentle"}
    if made is not None:
        edit: dict[str, Any] = {"kind": made.kind, "before": list(made.before), "after": list(made.after)}
        if len(made.parts) > 1:
            edit["parts"] = [{"before": list(before), "after": list(after)} for before, after in made.parts]
        new |= {"gentle": made.text, "gentle_edit": edit}
    return new


def _number_of_negatives(record: Mapping[str, Any]) -> int:
    further = record.get("negatives")
    first = any(record.get(name) is not None for name in _NEGATIVES[:2])
    return first + (len(further) if isinstance(further, list) else 0)


def _in_step(value: Any, kept: Sequence[int], own: int) -> Any:
    """A column's value for the kept negatives; None where it does not tell them apart."""
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

    def count(self, row: Row, made: GentleNegative | None, possible: Iterable[str]) -> None:
        """Take one row into account."""
        self.rows += 1
        self.possible.update(list(possible))
        if made is None:
            self.without.append(row.source)
        else:
            self.made[made.kind] += 1

    def to_json(self) -> dict[str, Any]:
        """Numbers for programs."""
        return {
            "rows": self.rows,
            "with_gentle": self.rows - len(self.without),
            "without_gentle": len(self.without),
            "made": dict(self.made),
            "possible": dict(self.possible),
        }


def write_gentle(
    data: Path,
    out: Path,
    *,
    lexicon: Lexicon,
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    column: str = "chosen",
    positives: str | None = None,
    image_root: Path | None = None,
) -> Coverage:
    """Give every row of a file a gentle negative of its answer, as far as the lexicon can.

    A row that gets one has it under ``gentle``, with its kind and spans under ``gentle_edit``; an older one goes.
    What a row gets depends on the seed, its place in the file and its text, not on the rows before it.

    Args:
        data: a file of rows, in any format that is read here.
        out: JSON lines; must not be there yet.
        lexicon: from :func:`cwdpo.negatives.read_lexicon`.
        seed: of all choices.
        kinds: kinds of edits to choose from.
        column: where the right answer stands; ``chosen`` is the preferred answer in every format.
        positives: a column with a list of further right answers, which no negative may equal; neither may it be right
            for another row of the same prompt and images, nor a paraphrase (``longer``, ``shorter``).

    Raises:
        DataError: a row that cannot be read, or a column that is missing.
    """
    refuse_existing(out)
    asked = checked_kinds(kinds)
    coverage, lines = Coverage(), []
    rows = list(rows_with_records(data, image_root))
    right_answers = RightAnswers(row for _, row in rows)
    for number, (record, row) in enumerate(rows):
        answer, others = _answers(record, row, column, positives)
        others += right_answers(row)
        rng = random.Random(hashed(seed, "gentle", number, answer))
        prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
        made = gentle_negative(answer, lexicon=lexicon, rng=rng, kinds=asked, avoid=others, prompt=prompt)
        coverage.count(row, made, edits_by_kind(Reading(answer, lexicon), prompt))
        lines.append(json_line(with_gentle(record, made), row.source))
    write_text(out, "".join(lines))
    return coverage


def refuse_existing(out: Path) -> None:
    """Nothing is written over, and the place must be there.

    Raises:
        UserError: the file exists, or its directory does not.
    """
    if out.exists():
        raise UserError(f"{out} exists, and nothing is written over. Name another file, or take it away.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a directory. Make it first, or name a file in one that is there.")


def rows_with_records(data: Path, image_root: Path | None) -> Iterator[tuple[Mapping[str, Any], Row]]:
    """Every row of a file as it is written there and as it is read.

    Raises:
        DataError: a row that cannot be read.
    """
    root = resolve_root(data, image_root)
    for record, source in read_records(data):
        if isinstance(record, DataError):
            raise record
        yield record, row_from_record(record, source=source, image_root=root)


def _answers(record: Mapping[str, Any], row: Row, column: str, positives: str | None) -> tuple[str, list[str]]:
    """The answer to edit, and the further right answers that its own column names."""
    answer = row.chosen
    if column != "chosen":
        if record.get(column) is None:
            raise DataError(f"{row.source}: the row has no `{column}`. Name its column with --column, or add it.")
        answer = read_answer(record[column], f"{row.source}: `{column}`")
    others = record.get(positives) if positives is not None else None
    if others is not None and not (isinstance(others, list) and all(isinstance(item, str) for item in others)):
        raise DataError(f"{row.source}: `{positives}` must be a list of right answers, as texts.")
    return answer, list(others or [])


def row_ids(rows: Sequence[Row]) -> list[str]:
    """The name of each row for samples: its id, or where it has none its number in the file, from 0.

    Raises:
        DataError: two rows of one name, whose samples nobody could tell apart.
    """
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


def json_line(record: Mapping[str, Any], source: str) -> str:
    """A record as a line of JSON.

    Raises:
        DataError: it holds what JSON cannot, such as the bytes of an image.
    """
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as problem:
        raise DataError(
            f"{source}: cannot be written as a line of JSON: {problem}. Save images as files beside the data and "
            "name their paths in `images`."
        ) from problem


@dataclass
class Mixed:
    """What was chosen from where."""

    rows: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    without_samples: int = 0
    unused_ids: tuple[str, ...] = ()
    """Ids of samples that no row has."""

    def count(self, chosen: Sequence[MixedNegative], sampled: Sequence[str]) -> None:
        """Take one row into account."""
        self.rows += 1
        self.sources.update(negative.source for negative in chosen)
        self.without_samples += not sampled


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
    image_root: Path | None = None,
) -> Mixed:
    """Choose every row's negatives from the data set's and the policy's.

    Rows come out with ``rejected`` (and ``negatives`` from the second on) chosen by
    :func:`cwdpo.negatives.mixing.mix_negatives`, and ``negative_sources`` beside them.

    Args:
        data: rows with ids, or else named by their number in the file, from 0.
        on_policy: JSON lines of ``{"id": ..., "negatives": [...]}``; an id may come more than once.
        progress: where in the run a schedule is read, from 0 to 1; the others are as there.

    Raises:
        DataError: a row or a sample that cannot be read, two rows of one
            name, or a row that ends up without a negative.
    """
    refuse_existing(out)
    share, samples, mixed, lines = fraction_at(fraction, progress), _read_samples(on_policy), Mixed(), []
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
        mixed.count(chosen, sampled)
        sources = {"negative_sources": [negative.source for negative in chosen]}
        with_new = with_negatives(record, [negative.text for negative in chosen])
        lines.append(json_line(with_new | sources, row.source))
    used = set(names)
    mixed.unused_ids = tuple(row_id for row_id in samples if row_id not in used)
    write_text(out, "".join(lines))
    return mixed


def _read_samples(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record, source in read_records(path):
        if isinstance(record, DataError):
            raise record
        row_id, texts = record.get("id"), record.get("negatives")
        if row_id is None or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f'{source}: a line of samples must be {{"id": "row-1", "negatives": ["...", "..."]}}.')
        found.setdefault(str(row_id), []).extend(texts)
    return found


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
