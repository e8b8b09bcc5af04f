"""Read data sets (JSON lines, a JSON list, a table, parquet, what ``datasets`` saved or the hub has), and divide rows
between stages.

The files are parsed here and not by ``datasets``' loaders, which accept ``"chosen": 3`` and columns that change their
type from row to row. Formats are not looked at: that is :mod:`cwdpo.data.formats`.
"""

import csv
import gc
import gzip
import io
import json
import logging
import math
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

from cwdpo.contents import other_kind
from cwdpo.data.formats import row_from_record
from cwdpo.data.image_roots import GivenRoots
from cwdpo.data.images import MAX_FILE_BYTES
from cwdpo.data.rows import Row
from cwdpo.data.sources import data_files, ending_of, hub_name, resolve_root
from cwdpo.errors import ConfigError, DataError, shortened

logger = logging.getLogger(__name__)

Record: TypeAlias = Mapping[str, Any]
_Row = TypeVar("_Row")
Parsed: TypeAlias = Iterator[tuple[Record | DataError, str]]

_BOMS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_AS_UTF8 = "Save the file as plain UTF-8, without a byte-order mark."


def read_rows(path: str | Path, *, image_root: GivenRoots = None) -> list[Row]:
    """Read a whole data set, or stop at the first row that cannot be used: a ``DataError`` names ``file:line``.

    ``path`` is a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` (all also with ``.gz``) or ``.parquet`` file, a pattern or
    a folder of such files, a directory of ``datasets``' ``save_to_disk``, or ``hf:owner/name:split``, a data set of the
    Hugging Face hub. Relative image paths start at the ``image_root``, by default the data's directory; several roots
    may be given as in ``PATH``, and only what lies in one of them is read.
    """
    roots = resolve_root(path, image_root)
    rows = []
    with without_collector():
        for record, source in read_records(path, stored=True):
            if isinstance(record, DataError):
                raise record
            rows.append(row_from_record(record, source=source, roots=roots))
    return rows


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python from searching rows for reference cycles, of which they have none, again and again as they grow."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def split_rows(rows: Sequence[_Row], fraction: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Divide rows between the two stages, the same way for the same number of rows, fraction and seed.

    No row is in both, and both keep the order of the file. A share of stage 1 that leaves a stage without a row,
    although it is neither 0 nor 1, is a ``ConfigError``.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"data.stage1_fraction is {fraction}, but is a share. Write a number from 0 to 1, as 0.75.")
    count = math.floor(len(rows) * fraction + 0.5)
    if 0 < fraction < 1 and not 0 < count < len(rows):
        there = "is only 1" if len(rows) == 1 else f"are only {len(rows)}"
        raise ConfigError(
            f"data.stage1_fraction is {fraction}, which leaves a stage without rows: there {there}. "
            "Add rows, or leave out a stage."
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    first = set(order[:count])
    return [row for i, row in enumerate(rows) if i in first], [row for i, row in enumerate(rows) if i not in first]


def choose_rows(rows: Sequence[Row], number: int, seed: int, *, asked: bool = False) -> list[Row]:
    """A fixed sample of rows, in their own order; all of them where there are no more than ``number``, which a warning
    says if that many were ``asked`` for."""
    if asked and number > len(rows):
        logger.warning("%d rows are asked for, but there are %d: all of them are used", number, len(rows))
    if len(rows) <= number:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), number))]


def read_records(path: str | Path, *, stored: bool = False) -> Parsed:
    """Read a data set's records one after another: each, or the error it is to be reported as, with its ``file:line``.

    Reading goes on after a bad record wherever the format shows where the next one begins; a file that cannot be read
    at all raises its error. What ``path`` may be says :func:`read_rows`. With ``stored``, images inside tables are
    left there, as :class:`cwdpo.data.rows.StoredImage`.
    """
    empty = True
    for item in _read_all(path, stored):
        empty = False
        yield item
    if empty:
        raise DataError(f"{path}: holds no row. Write one JSON object a line, or take the file out of the recipe.")


def _read_all(path: str | Path, stored: bool) -> Parsed:
    name = hub_name(path)
    if name is not None:
        from cwdpo.data.arrow import load_from_hub, rows_of_dataset

        yield from _numbered(rows_of_dataset(load_from_hub(name), stored=stored), path)
        return
    for file in data_files(Path(path)):
        yield from _read_file(file, stored)


def _read_file(path: Path, stored: bool) -> Parsed:
    ending, _ = ending_of(path)
    if path.is_dir() or ending == ".parquet":
        # pyarrow and datasets take time, which text does not need
        from cwdpo.data.arrow import load_saved, read_parquet, rows_of_dataset

        rows = rows_of_dataset(load_saved(path), stored=stored) if path.is_dir() else read_parquet(path, stored=stored)
        yield from _numbered(rows, path)
        return
    readers = {".jsonl": _read_lines, ".json": _read_list, ".csv": _read_table, ".tsv": _read_table}
    try:
        yield from readers[ending](path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise DataError(f"{path}: not a whole gzip file ({problem}). Copy or pack it again.") from problem


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if ending_of(path)[1] else path.open("rb")


def _first_bytes(path: Path) -> bytes:
    with _open(path) as file:
        return file.read(32)


def _read_table(path: Path) -> Parsed:
    """Rows of a table as text, its first line the names of the columns; an empty cell is no value."""
    csv.field_size_limit(
        MAX_FILE_BYTES
    )  # an image in base64 is longer than the 131,072 characters that are the default
    delimiter = "\t" if ending_of(path)[0] == ".tsv" else ","
    # spreadsheets begin the file with a byte-order mark
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            source = f"{path}:{lines.line_num + 1}"
            try:
                cells = next(lines, None)
            except (csv.Error, UnicodeDecodeError) as problem:
                if other := other_kind(_first_bytes(path), path):
                    raise DataError(other) from problem
                raise DataError(f"{source}: not a table in UTF-8: {problem}. Save it as CSV in UTF-8.") from problem
            if cells is None:
                if names is not None and lines.line_num == 1:
                    raise DataError(
                        f"{path}: holds one line, which is taken for the names of the columns: "
                        f"{shortened(', '.join(names))!r}. Write the rows below them."
                    )
                return
            if not cells:
                continue
            if names is None:
                names = cells
                if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
                    raise DataError(
                        f"{source}: its columns seem to be separated by {other!r}. Save the table with "
                        f"{'commas' if delimiter == ',' else 'tabs'}"
                        f"{', or name it .tsv' if (other, delimiter) == (chr(9), ',') else ''}."
                    )
                if len({*names}) < len(names) or not all(names[1:]):  # pandas gives its index no name
                    raise DataError(f"{source}: the columns need names, each once: {shortened(', '.join(names))!r}.")
            elif len(cells) != len(names):
                yield (
                    DataError(
                        f"{source}: {len(cells)} cells, but there are {len(names)} columns. Put texts with commas or "
                        "line breaks into double quotes."
                    ),
                    source,
                )
            else:
                yield {name: cell for name, cell in zip(names, cells, strict=True) if name and cell}, source


def _read_lines(path: Path) -> Parsed:
    """JSON lines; blank lines are passed over."""
    name = str(path)
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _refuse_bom(line, path)
                _refuse_other_texts(line, path)
            if not line.isspace():
                source = f"{name}:{number}"
                yield _parse_line(line.rstrip(b"\r\n"), source), source


def _parse_line(line: bytes, source: str) -> Record | DataError:
    try:
        return _expect_object(_DECODER.decode(line.decode("utf-8")), source)
    except UnicodeDecodeError as problem:
        return DataError(f"{source}: byte {problem.start + 1} of the line is not UTF-8. {_AS_UTF8}")
    except json.JSONDecodeError as problem:
        return DataError(f"{source}: {_of_broken_line(line, problem)}")
    except (ValueError, RecursionError) as problem:
        return DataError(f"{source}: {problem}.")


def _of_broken_line(line: bytes, problem: json.JSONDecodeError) -> str:
    """What is wrong with a line that is not JSON, and what to write in its place."""
    is_cut = problem.msg.startswith("Unterminated") or problem.pos >= len(problem.doc.rstrip())
    missing = _missing_end(problem.doc) if is_cut else None
    if missing is not None:
        return (
            f"the line ends too early, at column {len(problem.doc)}: {missing} is missing. Write or copy the line "
            "again, whole."
        )
    return f"broken JSON at column {problem.colno}: {problem.msg}. {_json_advice(line)}"


def _missing_end(text: str) -> str | None:
    """The quote and brackets that a text lacks to be JSON at its end; None where that is not all that is wrong.

    Example:
        >>> _missing_end('{"images": ["a.png'), _missing_end('{"a": 1}}'), _missing_end('{"a": 1, "b: 2}')
        ('"]}', None, None)
    """
    open_brackets: list[str] = []
    in_text = escaped = False
    for sign in text:
        if in_text:
            in_text, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"':
            in_text = True
        elif sign in "{[":
            open_brackets.append("}" if sign == "{" else "]")
        elif sign in "}]" and (not open_brackets or open_brackets.pop() != sign):
            return None
    if not text.lstrip().startswith("{") or not (in_text or open_brackets) or (in_text and text.rstrip().endswith("}")):
        return None  # with the last, a quote is missing somewhere before
    return ('"' if in_text else "") + "".join(reversed(open_brackets))


def _json_advice(line: bytes) -> str:
    """What to write in place of a line that is not JSON."""
    if line.lstrip()[:2] in (b"{'", b"['"):
        return "Write JSON, with \"...\" in place of '...': Python's json.dumps does."
    if re.search(rb"[}\]]\s*,\s*$", line):
        return "Take out the comma at the end of the line."
    if re.search(rb",\s*[}\]]\s*$", line):
        return "Take out the comma before the closing bracket."
    if b"\r" in line:
        return "Its lines end in the old way (CR alone): save it with the line ends of Unix or Windows."
    return "Write one object a line."


def _refuse_other_texts(line: bytes, path: Path) -> None:
    """Look at the first line of a file, and name a whole file of which every line would be broken JSON."""
    if b"\0" in line[:4]:
        raise DataError(f"{path}:1: this looks like UTF-16 text, which has zero bytes. {_AS_UTF8}")
    if line.strip() in (b"[", b"{", b"[{"):
        raise DataError(
            f"{path}:1: this is JSON over many lines, and a .jsonl file has one object a line. For a list of objects, "
            "[{...}, {...}], name the file .json."
        )


def _read_list(path: Path) -> Parsed:
    """A JSON list of objects; each is named by the line it begins on."""
    with _open(path) as file:
        raw = file.read()
    _refuse_bom(raw, path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(f"{path}:{line}: byte {problem.start + 1} of the file is not UTF-8. {_AS_UTF8}") from problem
    at, line, last = _skip_space(text, 0), 1, 0
    if at == len(text):
        return
    try:
        at = _skip_space(text, _expect(text, at, "["))
        while not text.startswith("]", at):
            line, last = line + text.count("\n", last, at), at
            value, end = _DECODER.raw_decode(text, at)
            yield _expect_object(value, f"{path}:{line}"), f"{path}:{line}"
            at = _skip_space(text, end)
            if not text.startswith("]", at):
                at = _skip_space(text, _expect(text, at, ","))
                if text.startswith("]", at):
                    raise json.JSONDecodeError("a comma before the end of the list", text, at)
        if _skip_space(text, at + 1) != len(text):
            raise json.JSONDecodeError("more text after the end of the list", text, at)
    except json.JSONDecodeError as problem:
        if held := _of_object(text):
            raise DataError(f"{path}: {held}") from None
        raise DataError(
            f"{path}:{problem.lineno}: broken JSON at column {problem.colno}: {problem.msg}. "
            "Write a list of objects, [{...}, {...}], or name a file with one object a line .jsonl."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}:{line}: {problem}.") from problem


def _of_object(text: str) -> str | None:
    """What an object holds where a list of rows is expected, and what to write: LLaMA-Factory's ``dataset_info.json``,
    which names files of rows, or rows with a frame around them; None for any other text."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = whole.items() if isinstance(whole, dict) else ()
    named = next((value["file_name"] for _, value in items if isinstance(value, dict) and "file_name" in value), None)
    if named is not None:
        return f"a list of data sets, not rows. Name the file of the rows: {named}."
    for key, value in items:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"its rows lie under `{key}`. Write that list alone, [{{...}}, {{...}}]."
    return None


def _numbered(rows: Iterable[Record], path: str | Path) -> Parsed:
    """Rows with their number, counted from 1 as lines are."""
    name = str(path)
    for number, row in enumerate(rows, start=1):
        yield row, f"{name}:{number}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing a repeated key: one of its values would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shortened(twice)!r} stands twice in one object. Keep one of them")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)  # one, as making it takes as long as a row


def _expect_object(value: object, source: str) -> Record | DataError:
    if isinstance(value, dict):
        return value
    advice = "Name a file with one list of objects .json" if isinstance(value, list) else "Write {...}"
    return DataError(f"{source}: a row is a {type(value).__name__}, but must be an object. {advice}.")


def _expect(text: str, at: int, mark: str) -> int:
    """Position after a mark that must stand here."""
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"expected {mark!r}", text, at)
    return at + len(mark)


def _skip_space(text: str, at: int) -> int:
    """Position of the next character that is not white space, at most the length."""
    while text[at : at + 1] in (" ", "\t", "\r", "\n"):
        at += 1
    return at


def _refuse_bom(start: bytes, path: Path) -> None:
    """A byte-order mark is not JSON, and shows that an editor chose the encoding; other marks are of other files."""
    if other := other_kind(start, path):
        raise DataError(other)
    for mark, name in _BOMS.items():
        if start.startswith(mark):
            raise DataError(f"{path}:1: the file begins with a {name} byte-order mark. {_AS_UTF8}")
