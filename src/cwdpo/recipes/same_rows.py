"""Are the rows still those that the run began with? Else stage 2 could see rows that stage 1 trained on."""

import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image

from cwdpo.config.recipe import DataConfig
from cwdpo.data.reading import resolve_root
from cwdpo.data.rows import ImageSource, Message, Row
from cwdpo.errors import DataError
from cwdpo.records.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def keep_rows(run: RunDirectory, data: DataConfig, rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> None:
    """Remember what the run's data files hold."""
    run.keep("rows", {"files": _contents(data, rows) + _contents(data, eval_rows or [])})


def check_same_rows(run: RunDirectory, data: DataConfig, rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> None:
    """Compare the rows with those that the run began with.

    Texts, answers, names of images and the order count. What an image file holds does not, so that a damaged one can be
    mended.

    Raises:
        DataError: they differ; the message names the file.
    """
    before: list[dict[str, Any]] = run.kept("rows").get("files", [])
    if not before:
        logger.warning(
            "%s does not say which rows it began with, so they are not compared with those of now.", run.root
        )
        return
    for was, now in zip(before, _contents(data, rows) + _contents(data, eval_rows or []), strict=False):
        if was != now:
            count = (
                f"{was['rows']} rows then, {now['rows']} now" if was["rows"] != now["rows"] else "as many, but others"
            )
            raise DataError(
                f"{now['file']}: its rows are not those that the run in {run.root} began with ({count}). They would be "
                "divided between the stages another way, so that stage 2 could see what stage 1 trained on. Put the "
                "file back as it was, or begin anew with another --output_dir. (An image file may be mended.)"
            )


def _contents(data: DataConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each data file's name, number of rows and hash, in the order in which they are read."""
    found = []
    for file, group in groupby(rows, key=lambda row: row.source.rpartition(":")[0]):
        of_file, root = list(group), resolve_root(file, data.image_root).resolve()
        found.append({"file": file, "rows": len(of_file), "hash": hash_rows(of_file, root)})
    return found


def hash_rows(rows: Sequence[Row], root: Path) -> str:
    """32 hexadecimal digits: equal for equal texts, answers, kinds and names of images in equal order.

    Args:
        rows: of one file.
        root: where its image names start, resolved.
    """
    digest = xxhash.xxh3_128()
    for row in rows:
        answers = [row.chosen, list(row.rejected), row.gentle, row.longer, row.shorter, row.kind]
        images = [_name(image, root) for image in row.images]
        digest.update(json.dumps([list(map(_turn, row.prompt)), answers, images]).encode() + b"\n")
    return digest.hexdigest()


def _turn(message: Message) -> list[Any]:
    return [message.role, [part if isinstance(part, str) else None for part in message.parts]]


def _name(image: ImageSource, root: Path) -> Any:
    """A file's name; of an image that lies in the data itself, which has none, what is cheap to look at."""
    if isinstance(image, Path):
        return str(image.relative_to(root) if image.is_relative_to(root) else image)
    if isinstance(image, Image.Image):
        return [image.mode, *image.size]
    return xxhash.xxh3_128(image).hexdigest()
