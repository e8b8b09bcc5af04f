"""Rows of Arrow tables (parquet, ``save_to_disk``, the hub, memory) as ``datasets`` gives them.

Arrow stores some features in another form than they have: a ``Json`` column is text. ``datasets`` decodes them here, so
that a data set means one thing however it is loaded. Only images are left encoded, for our own reader and its limits.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from cwdpo.data.sources import HubName
from cwdpo.errors import DataError

if TYPE_CHECKING:
    import datasets

Rows: TypeAlias = Iterator[dict[str, Any]]
Decode: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]

_AT_A_TIME = 64


def read_parquet(path: Path) -> Rows:
    """Rows of a parquet file, in small batches."""
    try:
        with pq.ParquetFile(path) as file:
            yield from rows_of_tables(file.iter_batches(batch_size=_AT_A_TIME), decoder_of_schema(file.schema_arrow))
    except (pa.ArrowException, OSError) as problem:
        reason = f"not a readable parquet file: {problem}. Write it again, or give JSON lines."
        raise DataError(f"{path}: {reason}") from problem


def read_saved(path: Path) -> Rows:
    """Rows of a directory made by ``save_to_disk``."""
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
    yield from rows_of_dataset(loaded)


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


def rows_of_dataset(dataset: "datasets.Dataset") -> Rows:
    """All rows of a data set in memory or on disk."""
    tables = dataset.with_format("arrow").iter(batch_size=_AT_A_TIME)
    yield from rows_of_tables(tables, decoder_of_features(dataset.features))


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
