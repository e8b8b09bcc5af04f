"""Read files of rows (JSON lines, a JSON list, parquet, or what ``datasets`` saved), and divide them between stages.

The files are parsed here and not by ``datasets``' loaders, which accept ``"chosen": 3`` and columns that change their
type from row to row. Formats are not looked at: that is :mod:`cwdpo.data.formats`.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cwdpo.data.formats import row_from_record
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, DataError

Record: TypeAlias = Mapping[str, Any]
_Row = TypeVar("_Row")
Parsed: TypeAlias = Iterator[tuple[Record | DataError, str]]

_BOMS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_AS_UTF8 = "Save the file as plain UTF-8, without a byte-order mark."


def read_rows(path: str | Path, *, image_root: str | Path | None = None) -> list[Row]:
    """Read a whole file of rows, or stop at the first that cannot be used: a ``DataError`` names ``file:line``.

    ``path`` is a ``.jsonl``, ``.json`` or ``.parquet`` file, or a directory of ``datasets``' ``save_to_disk``. Relative
    image paths start at the ``image_root``, by default the file's directory, and may not leave it.
    """
    root = resolve_root(path, image_root)
    rows = []
    for record, source in read_records(path):
        if isinstance(record, DataError):
            raise record
        rows.append(row_from_record(record, source=source, image_root=root))
    return rows


def resolve_root(path: str | Path, image_root: str | Path | None) -> Path:
    """Directory that image paths of a data file start from: the one given, else the file's own."""
    if image_root is None:
        return Path(path) if Path(path).is_dir() else Path(path).parent
    if not Path(image_root).is_dir():
        raise DataError(f"the image root {image_root} is not a directory. Write the directory that holds the images.")
    return Path(image_root)


def split_rows(rows: Sequence[_Row], fraction: float, seed: int) -> tuple[list[_Row], list[_Row]]:
    """Divide rows between the two stages, the same way for the same number of rows, fraction and seed.

    No row is in both, and both keep the order of the file. A share of stage 1 that leaves a stage without a row,
    although it is neither 0 nor 1, is a ``ConfigError``.
    """
    if not 0 <= fraction <= 1:
        raise ConfigError(f"data.stage1_fraction is {fraction}, but is a share. Write a number from 0 to 1, as 0.75.")
    count = math.floor(len(rows) * fraction + 0.5)
    if 0 < fraction < 1 and not 0 < count < len(rows):
        raise ConfigError(
            f"data.stage1_fraction is {fraction}, which leaves a stage without rows: there are only {len(rows)}. "
            "Add rows, or leave out a stage."
        )
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    first = set(order[:count])
    return [row for i, row in enumerate(rows) if i in first], [row for i, row in enumerate(rows) if i not in first]


def choose_rows(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """A fixed sample of rows, in their own order; all of them where there are no more than ``number``."""
    if len(rows) <= number:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), number))]


def read_records(path: str | Path) -> Parsed:
    """Read a file's records one after another: each, or the error it is to be reported as, with its ``file:line``.

    Reading goes on after a bad record wherever the format shows where the next one begins; a file that cannot be read
    at all raises its error.
    """
    path = Path(path)
    readers = {".jsonl": _read_lines, ".json": _read_list, ".parquet": _read_parquet}
    if not path.exists():
        raise DataError(f"{path}: no such file. Correct the path.")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: not a file. Give a .jsonl, .json or .parquet file.")
    reader = _read_directory if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: files ending in {path.suffix!r} are not read. Give a .jsonl, .json or .parquet file, or a "
            "directory that datasets saved with save_to_disk."
        )
    empty = True
    for item in reader(path):
        empty = False
        yield item
    if empty:
        raise DataError(f"{path}: holds no row. Write one JSON object a line, or take the file out of the recipe.")


def _read_lines(path: Path) -> Parsed:
    """JSON lines; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _refuse_bom(line, path)
            if line.strip():
                source = f"{path}:{number}"
                yield _parse_line(line.rstrip(b"\r\n"), source), source


def _parse_line(line: bytes, source: str) -> Record | DataError:
    try:
        return _expect_object(json.loads(line.decode("utf-8"), object_pairs_hook=_unique_keys), source)
    except UnicodeDecodeError as problem:
        return DataError(f"{source}: byte {problem.start + 1} of the line is not UTF-8. {_AS_UTF8}")
    except json.JSONDecodeError as problem:
        return DataError(f"{source}: broken JSON at column {problem.colno}: {problem.msg}. Write one object a line.")
    except (ValueError, RecursionError) as problem:
        return DataError(f"{source}: {problem}.")


def _read_list(path: Path) -> Parsed:
    """A JSON list of objects; each is named by the line it begins on."""
    raw = path.read_bytes()
    _refuse_bom(raw, path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(f"{path}:{line}: byte {problem.start + 1} of the file is not UTF-8. {_AS_UTF8}") from problem
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    at, line, last = _skip_space(text, 0), 1, 0
    if at == len(text):
        return
    try:
        at = _skip_space(text, _expect(text, at, "["))
        while not text.startswith("]", at):
            line, last = line + text.count("\n", last, at), at
            value, end = decoder.raw_decode(text, at)
            yield _expect_object(value, f"{path}:{line}"), f"{path}:{line}"
            at = _skip_space(text, end)
            if not text.startswith("]", at):
                at = _skip_space(text, _expect(text, at, ","))
                if text.startswith("]", at):
                    raise json.JSONDecodeError("a comma before the end of the list", text, at)
        if _skip_space(text, at + 1) != len(text):
            raise json.JSONDecodeError("more text after the end of the list", text, at)
    except json.JSONDecodeError as problem:
        raise DataError(
            f"{path}:{problem.lineno}: broken JSON at column {problem.colno}: {problem.msg}. "
            "Write a list of objects, [{...}, {...}], or name a file with one object a line .jsonl."
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{path}:{line}: {problem}.") from problem


def _read_parquet(path: Path) -> Parsed:
    """Rows of a parquet file, in small batches; images inside stay encoded."""
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(batch_size=64), path)
    except (pa.ArrowException, OSError) as problem:
        reason = f"not a readable parquet file: {problem}. Write it again, or give JSON lines."
        raise DataError(f"{path}: {reason}") from problem


def _read_directory(path: Path) -> Parsed:
    """Rows of a directory made by ``save_to_disk``; images inside stay encoded."""
    import datasets  # takes a second, which files do not need

    try:
        loaded = datasets.load_from_disk(str(path))
    except (pa.ArrowException, OSError, ValueError, KeyError) as problem:
        raise DataError(
            f"{path}: not a directory that datasets saved with save_to_disk ({problem}). Give such a directory, or a "
            ".jsonl, .json or .parquet file."
        ) from problem
    if isinstance(loaded, datasets.DatasetDict):
        splits = ", ".join(str(path / name) for name in loaded)
        raise DataError(f"{path}: holds several splits. Give one of them: {splits}.")
    yield from _numbered(loaded.with_format("arrow").iter(batch_size=64), path)


def _numbered(tables: Iterable[pa.Table | pa.RecordBatch], path: Path) -> Parsed:
    """Rows of tables with their number, counted from 1 as lines are."""
    rows = (row for table in tables for row in table.to_pylist())
    for number, row in enumerate(rows, start=1):
        yield row, f"{path}:{number}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, refusing a repeated key: one of its values would be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object. Keep one of them")
    return found


def _expect_object(value: object, source: str) -> Record | DataError:
    if isinstance(value, dict):
        return value
    return DataError(f"{source}: a row is a {type(value).__name__}, but must be an object. Write {{...}}.")


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
    """A byte-order mark is not JSON, and shows that an editor chose the encoding."""
    for mark, name in _BOMS.items():
        if start.startswith(mark):
            raise DataError(f"{path}:1: the file begins with a {name} byte-order mark. {_AS_UTF8}")
