"""Rows of Arrow tables (parquet, ``save_to_disk``, the hub, memory) as ``datasets`` gives them.

Arrow stores some features in another form than they have: a ``Json`` column is text. ``datasets`` decodes them here, so
that a data set means one thing however it is loaded. Only images are left encoded, for our own reader and its limits.
"""

import dataclasses
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from cwdpo.contents import other_kind
from cwdpo.data.rows import StoredImage, Table
from cwdpo.data.sources import HubName
from cwdpo.errors import DataError

if TYPE_CHECKING:
    import datasets

Rows: TypeAlias = Iterator[dict[str, Any]]
Decode: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]

_AT_A_TIME = 64

_FEWEST_BYTES = 1024
"""Smaller values stay in memory: what says where they lie is not much smaller."""

_KEPT_BYTES = 2**27
"""Of the columns that were read last, for rows that are asked for one after another."""


class ParquetTable:
    """A parquet file, of which single values are read; a row group's column at a time, the last ones are kept.

    Row groups of about 100 rows, as ``datasets`` writes them where there are images, are read fast in any order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetTable, (self.path,)

    def value(self, row: int, column: str) -> Any:
        try:
            if self._process != os.getpid():  # a file's position would be shared with the process that began this one
                self._open()
            group = bisect_right(self._starts, row) - 1
            values = self._kept.get((group, column))
            if values is None:
                values = self._file.read_row_group(group, columns=[column]).column(column)
                self._size += values.nbytes
        except (pa.ArrowException, OSError) as problem:
            reason = " ".join(str(problem).split())
            raise DataError(f"{self.path}: cannot be read any more: {reason}. Do not change it in use.") from problem
        if next(reversed(self._kept), None) != (group, column):
            self._kept.pop((group, column), None)
            self._kept[group, column] = values  # the newest last
            while len(self._kept) > 1 and self._size > _KEPT_BYTES:
                self._size -= self._kept.pop(next(iter(self._kept))).nbytes
        value = values[row - self._starts[group]].as_py()
        return value if self._decode is None else self._decode({column: value})[column]

    def _open(self) -> None:
        self._file = pq.ParquetFile(self.path)
        meta = self._file.metadata
        sizes = (meta.row_group(number).num_rows for number in range(meta.num_row_groups))
        self._starts = [0, *accumulate(sizes)]
        self._decode = decoder_of_schema(self._file.schema_arrow)
        self._kept: dict[tuple[int, str], pa.ChunkedArray] = {}
        self._size = 0  # bytes of those
        self._process = os.getpid()


class SavedTable:
    """What ``datasets`` has on disk, mapped into memory, or in memory: its rows, and single values of them."""

    def __init__(self, dataset: "datasets.Dataset") -> None:
        self._dataset, self._decode = dataset.with_format("arrow"), decoder_of_features(dataset.features)
        self._with_bytes = columns_with_bytes(dataset.features.arrow_schema)
        self._last: tuple[int, str, Any] | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A row whose encoded images are read when they are asked for."""
        found = self._dataset[row].to_pylist()[0]
        return with_stored_images(self._decode(found), self, row, self._with_bytes)

    def value(self, row: int, column: str) -> Any:
        if self._last is None or self._last[:2] != (row, column):  # a row's images are asked for one after the other
            found = self._dataset[row].select([column]).to_pylist()[0]
            self._last = row, column, self._decode(found)[column]
        return self._last[2]


def columns_with_bytes(schema: pa.Schema) -> list[str]:
    """The columns that may hold encoded images, large and nested ones as well."""
    return [each.name for each in schema if "binary" in str(each.type)]


def with_stored_images(row: dict[str, Any], table: Table, number: int, columns: Iterable[str]) -> dict[str, Any]:
    """A row of a table whose encoded images, in these columns, are read when they are asked for."""
    return row | {name: _stored(row[name], table, number, (name,)) for name in columns}


def _all_stored(rows: Rows, table: Table, schema: pa.Schema) -> Rows:
    """All rows of a table, from the first, in the same way."""
    columns = columns_with_bytes(schema)
    return (with_stored_images(row, table, number, columns) for number, row in enumerate(rows))


def _stored(value: Any, table: Table, row: int, path: tuple[str | int, ...]) -> Any:
    if isinstance(value, bytes):
        return StoredImage(table, row, path) if len(value) >= _FEWEST_BYTES else value
    if isinstance(value, dict):
        return {key: _stored(inner, table, row, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_stored(inner, table, row, (*path, index)) for index, inner in enumerate(value)]
    return value


def read_parquet(path: Path, *, stored: bool = False) -> Rows:
    """Rows of a parquet file, in small batches; ``stored`` leaves images where they are."""
    try:
        with pq.ParquetFile(path) as file:
            rows = rows_of_tables(file.iter_batches(batch_size=_AT_A_TIME), decoder_of_schema(file.schema_arrow))
            yield from _all_stored(rows, ParquetTable(path), file.schema_arrow) if stored else rows
    except (pa.ArrowException, OSError) as problem:
        with path.open("rb") as raw:
            start = raw.read(32)
        if not start.startswith(b"PAR1") and (other := other_kind(start, path)):
            raise DataError(other) from problem
        reason = f"not a readable parquet file: {problem}. Write it again, or give JSON lines."
        raise DataError(f"{path}: {reason}") from problem


def load_saved(path: Path) -> "datasets.Dataset":
    """A directory made by ``save_to_disk``."""
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
    return loaded


def load_from_hub(name: HubName) -> "datasets.Dataset":
    """A split of a hub data set, downloaded or from the cache; by default ``train``, or the only one there is."""
    import datasets

    shown = f"hf:{name.repository}" + (f"/{name.configuration}" if name.configuration else "")
    try:
        loaded = datasets.load_dataset(name.repository, name.configuration, split=name.split)
    except Exception as problem:  # datasets raises many types; all mean that the data is not to be had
        reason = " ".join(str(problem).split())[:300].rstrip(".")
        raise DataError(
            f"{shown}: the data set cannot be loaded ({type(problem).__name__}: {reason}). Check the name, the "
            "connection and, for a private one, the login; without a network, download it first: hf download "
            f"{name.repository} --repo-type dataset --local-dir DIR, and name DIR."
        ) from problem
    if isinstance(loaded, datasets.Dataset):
        return loaded
    splits = list(loaded)
    if "train" not in splits and len(splits) != 1:
        raise DataError(f"{shown}: has no split `train`. Give one of: {', '.join(f'{shown}:{one}' for one in splits)}.")
    return loaded["train" if "train" in splits else splits[0]]


def rows_of_dataset(dataset: "datasets.Dataset", *, stored: bool = False) -> Rows:
    """All rows of a data set in memory or on disk; ``stored`` leaves images where they are."""
    tables = dataset.with_format("arrow").iter(batch_size=_AT_A_TIME)
    rows = rows_of_tables(tables, decoder_of_features(dataset.features))
    yield from _all_stored(rows, SavedTable(dataset), dataset.features.arrow_schema) if stored else rows


def rows_of_tables(tables: Iterable[pa.Table | pa.RecordBatch], decode: Decode | None) -> Rows:
    """Rows of tables, decoded."""
    for table in tables:
        for row in table.to_pylist():
            yield row if decode is None else decode(row)


def decoder_of_schema(schema: pa.Schema) -> Decode | None:
    """What turns rows as they are stored into rows as they are meant; None where both are the same."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"")
    if b'"Json"' not in metadata and "arrow.json" not in str(schema.types):
        return None  # without datasets, whose import takes a second
    import datasets

    return decoder_of_features(datasets.Features.from_arrow_schema(schema))


def decoder_of_features(features: "datasets.Features") -> Decode:
    """The same for features of ``datasets``."""
    import datasets

    decode: Decode = datasets.Features({name: _encoded_media(each) for name, each in features.items()}).decode_example
    return decode


def _encoded_media(feature: Any) -> Any:
    """A feature whose images, sounds and videos stay encoded."""
    import datasets

    if isinstance(feature, dict):
        return {name: _encoded_media(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_encoded_media(inner) for inner in feature]
    if isinstance(feature, datasets.List | datasets.LargeList):
        return dataclasses.replace(feature, feature=_encoded_media(feature.feature))
    if getattr(feature, "decode", False) and not isinstance(feature, datasets.Json):
        return dataclasses.replace(feature, decode=False)
    return feature
