"""Images inside tables stay there until they are asked for, in any order and in any process."""

import io
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cwdpo.config.recipe import DataConfig
from cwdpo.data import arrow
from cwdpo.data.check import check_rows
from cwdpo.data.images import open_image, peek_image
from cwdpo.data.reading import read_records, read_rows
from cwdpo.data.rows import ImageSlot, Message, Row, StoredImage
from cwdpo.errors import DataError
from cwdpo.recipes.resuming import _contents, _packed


def png(number: int) -> bytes:
    """A picture of noise, so that it has some kilobytes; row 3 has a picture of one colour, which is small."""
    noise = random.Random(number).randbytes(30 * 40 * 3) if number != 3 else bytes(30 * 40 * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (30, 40), noise).save(file, format="PNG")
    return file.getvalue()


PICTURES = [png(number) for number in range(10)]


def record(number: int, *, inline: bool) -> dict[str, Any]:
    image = {"bytes": PICTURES[number], "path": None}
    row = {"prompt": [{"role": "user", "content": "What?"}], "chosen": f"red {number}", "rejected": "cat"}
    if not inline:
        return row | {"images": [image]}
    parts = [{"type": "image", "image": image, "text": None}, {"type": "text", "image": None, "text": "What?"}]
    return row | {"prompt": [{"role": "user", "content": parts}]}


@pytest.fixture(params=["parquet", "inline parquet", "saved"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    records = [record(number, inline="inline" in request.param) for number in range(10)]
    dataset = datasets.Dataset.from_list(records)
    if request.param == "saved":
        dataset = dataset.cast_column("images", datasets.List(datasets.Image()))
        dataset.save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"
    pq.write_table(dataset.data.table, tmp_path / "rows.parquet", row_group_size=4)
    return tmp_path / "rows.parquet"


def content(row: Row) -> bytes:
    (image,) = row.images
    assert isinstance(image, StoredImage | bytes)
    return image if isinstance(image, bytes) else image.read()


def test_images_are_read_when_they_are_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow, "_KEPT_BYTES", 1)
    rows = read_rows(path)
    assert [isinstance(row.images[0], StoredImage) for row in rows] == [number != 3 for number in range(10)]
    order = list(range(10))
    random.Random(5).shuffle(order)
    for number in [*order, *order]:
        row = rows[number]
        assert row.chosen == f"red {number}"
        assert content(row) == PICTURES[number]
        assert peek_image(row.images[0], source="f:1") == (30, 40)
        assert open_image(row.images[0], source="f:1").tobytes() == Image.open(io.BytesIO(PICTURES[number])).tobytes()


def test_another_process_reads_the_same(path: Path) -> None:
    rows = read_rows(path)
    assert content(rows[9]) == PICTURES[9]
    again = pickle.loads(pickle.dumps(rows))
    assert [content(row) for row in again] == PICTURES


def test_a_row_group_is_kept_for_the_next_row_and_no_more_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = datasets.Dataset.from_list([record(number, inline=False) for number in range(10)]).data.table
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    read: list[int] = []
    original: Callable[..., Any] = pq.ParquetFile.read_row_group

    def spy(self: Any, group: int, **options: Any) -> Any:
        read.append(group)
        return original(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    rows = read_rows(tmp_path / "rows.parquet")
    assert read == []
    assert [content(rows[number]) for number in (0, 1, 4, 8, 2, 5)] == [PICTURES[n] for n in (0, 1, 4, 8, 2, 5)]
    assert read == [0, 1, 2]
    monkeypatch.setattr(arrow, "_KEPT_BYTES", 1)
    assert [content(rows[number]) for number in (0, 1, 9, 0)] == [PICTURES[n] for n in (0, 1, 9, 0)]
    assert read == [0, 1, 2, 2, 0]  # the first group was the newest but one


def test_what_is_made_of_rows_is_the_same(path: Path) -> None:
    """The hash that a resumed run compares, and a check, see the bytes."""
    plain = [row for row in read_rows(path)]
    held = [Row(row.prompt, row.chosen, row.rejected, images=(content(row),), source=row.source) for row in plain]
    assert _contents(DataConfig(train=str(path)), plain) == _contents(DataConfig(train=str(path)), held)
    report = check_rows(path)
    assert (len(report.rows), report.findings, report.notes) == (10, [], [])
    assert not any("StoredImage" in str(record) for record, _ in read_records(path))


def test_the_hash_tells_rows_apart_and_nothing_else() -> None:
    """Each part of a row counts, also where two parts have the same letters together; where its texts lie does not."""
    turns = (Message("system", ("s",)), Message("user", (ImageSlot(), 'Na\u00efve "x"')))
    row = Row(turns, "ab", ("c", "ab"), kind="k", longer="l")
    others = [
        replace(row, prompt=turns[1:]),
        replace(row, prompt=(turns[0], Message("user", ('Na\u00efve "x"', ImageSlot())))),
        replace(row, prompt=(turns[0], Message("assistant", turns[1].parts))),
        replace(row, prompt=(turns[0], Message("user", turns[1].parts, "thought"))),
        replace(row, chosen="a"),
        replace(row, chosen="a", rejected=("bc", "ab")),
        replace(row, rejected=("ab", "c")),
        replace(row, rejected=("c", "ab", "")),
        replace(row, gentle="l", longer=None),
        replace(row, shorter="l", longer=None),
        replace(row, kind=None),
        replace(row, template_kwargs={"t": None}),
    ]
    packed = {_packed(each, ["a.png"]) for each in [row, *others]} | {
        _packed(row, [name]) for name in ("b", ["RGB", 2])
    }
    assert len(packed) == len(others) + 3
    copied = Row(
        turns, "".join(["a", "b"]), ("c", "".join(["a", "b"])), kind="k", longer="l", id="another", source="f:3"
    )
    assert _packed(copied, ["".join(["a", ".png"])]) == _packed(row, ["a.png"])


def test_a_file_that_is_gone_is_an_error_with_its_name(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([record(number, inline=False) for number in range(4)]).data.table
    pq.write_table(table, tmp_path / "rows.parquet")
    (row, *_) = read_rows(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").unlink()
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read any more"):
        open_image(row.images[0], source="f:1")
