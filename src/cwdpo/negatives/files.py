"""Negatives of whole files: rows in, rows out, everything else in a row as it was."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cwdpo.data.formats import row_from_record
from cwdpo.data.messages import read_answer
from cwdpo.data.parsing import read_records
from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.negatives.columns import with_gentle
from cwdpo.negatives.gentle import GentleNegative, checked_kinds, edits_by_kind, gentle_negative
from cwdpo.negatives.lexicon import Lexicon
from cwdpo.negatives.mixing import hashed
from cwdpo.negatives.reading_text import Reading
from cwdpo.negatives.right_answers import RightAnswers
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
        answer = read_answer(record[column], f"`{column}`", row.source)
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
