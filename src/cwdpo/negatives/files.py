"""Negatives of whole files: rows in, rows out, everything else in a row as it was."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.config.fractions import Fraction
from cwdpo.data.formats import format_of, row_from_record
from cwdpo.data.messages import read_answer
from cwdpo.data.parsing import read_records
from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.filtering import normalised
from cwdpo.negatives.gentle import GentleNegative, checked_kinds, edits_by_kind, gentle_negative
from cwdpo.negatives.lexicon import Lexicon
from cwdpo.negatives.mixing import MixedNegative, fraction_at, hashed, mix_negatives
from cwdpo.negatives.reading_text import Reading
from cwdpo.records.files import write_text


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
        positives: a column with a list of further right answers, which no negative may equal.

    Raises:
        DataError: a row that cannot be read, or a column that is missing.
    """
    refuse_existing(out)
    asked = checked_kinds(kinds)
    coverage, lines = Coverage(), []
    for number, (record, row) in enumerate(rows_with_records(data, image_root)):
        answer, others = _answers(record, row, column, positives)
        rng = random.Random(hashed(seed, "gentle", number, answer))
        prompt = "\n".join(part for turn in row.prompt for part in turn.parts if isinstance(part, str))
        made = gentle_negative(answer, lexicon=lexicon, rng=rng, kinds=asked, avoid=others, prompt=prompt)
        coverage.count(row, made, edits_by_kind(Reading(answer, lexicon), prompt))
        lines.append(json_line(with_gentle(record, made), row.source))
    write_text(out, "".join(lines))
    return coverage


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
        DataError: a row or a sample that cannot be read, or a row that ends up without a negative.
    """
    refuse_existing(out)
    share, samples, mixed, lines = fraction_at(fraction, progress), _read_samples(on_policy), Mixed(), []
    used = set()
    for number, (record, row) in enumerate(rows_with_records(data, image_root)):
        row_id = row.id or str(number)
        used.add(row_id)
        sampled = [text for text in samples.get(row_id, []) if normalised(text) != normalised(row.chosen)]
        chosen = mix_negatives(
            row.rejected, sampled, fraction=share, seed=seed, row_id=row_id, round=round, count=count
        )
        if not chosen:
            raise DataError(f"{row.source}: the row has no negative of either kind. Add `rejected`, or samples.")
        mixed.count(chosen, sampled)
        sources = {"negative_sources": [negative.source for negative in chosen]}
        with_new = with_negatives(record, [negative.text for negative in chosen])
        lines.append(json_line(with_new | sources, row.source))
    mixed.unused_ids = tuple(row_id for row_id in samples if row_id not in used)
    write_text(out, "".join(lines))
    return mixed


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


def with_negatives(record: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The record with these negatives, one at least, in the place of its own."""
    kept = {key: value for key, value in record.items() if key not in ("rejected", "rejected_response", "negatives")}
    texts = list(texts)
    if format_of(record) != "llava":  # there a rejected answer would make it another format
        kept["rejected_response" if format_of(record) == "ms-swift" else "rejected"] = texts.pop(0)
    return kept | ({"negatives": texts} if texts else {})


def with_gentle(record: Mapping[str, Any], made: GentleNegative | None) -> dict[str, Any]:
    """The record with this negative, or with none, in the place of an older one."""
    kept = {key: value for key, value in record.items() if key not in ("gentle", "gentle_edit")}
    if made is not None:
        edit: dict[str, Any] = {"kind": made.kind, "before": list(made.before), "after": list(made.after)}
        if len(made.parts) > 1:
            edit["parts"] = [{"before": list(before), "after": list(after)} for before, after in made.parts]
        kept |= {"gentle": made.text, "gentle_edit": edit}
    return kept


def _answers(record: Mapping[str, Any], row: Row, column: str, positives: str | None) -> tuple[str, list[str]]:
    """The answer to edit, and every further right answer of the row."""
    answer = row.chosen
    if column != "chosen":
        if record.get(column) is None:
            raise DataError(f"{row.source}: the row has no `{column}`. Name its column with --column, or add it.")
        answer = read_answer(record[column], f"`{column}`", row.source)
    others = record.get(positives) if positives is not None else None
    if others is not None and not (isinstance(others, list) and all(isinstance(item, str) for item in others)):
        raise DataError(f"{row.source}: `{positives}` must be a list of right answers, as texts.")
    return answer, [row.chosen, *(others or [])]


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
