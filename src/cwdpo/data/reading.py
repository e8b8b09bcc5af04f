"""Rows from a file, and their division between the two stages."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

from cwdpo.data.formats import row_from_record
from cwdpo.data.parsing import read_records
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, DataError


def read_rows(path: str | Path, *, image_root: str | Path | None = None) -> list[Row]:
    """Read a whole file of rows, or stop at the first that cannot be used.

    Args:
        path: a ``.jsonl``, ``.json`` or ``.parquet`` file, or a directory of ``datasets``' ``save_to_disk``.
        image_root: where relative image paths start, and what they may not leave; by default the file's directory.

    Raises:
        DataError: names ``file:line`` and says what to write.
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


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Divide rows between the two stages, the same way for the same number of rows, fraction and seed.

    Args:
        rows: all training rows.
        fraction: share of stage 1, from 0 to 1.
        seed: of the shuffle that decides which rows go where.

    Returns:
        Rows of stage 1 and of stage 2; no row is in both, and both keep the order of the file.

    Raises:
        ConfigError: the fraction is out of range, or leaves a stage without a row although it is neither 0 nor 1.
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
