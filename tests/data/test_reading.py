"""Files of rows: each kind read, each kind of damage named by file and line."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cwdpo.data.formats import row_from_record
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.images import open_image
from cwdpo.data.reading import read_records, read_rows, split_rows
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, DataError

FLAT = {"prompt": "Hi", "chosen": "a", "rejected": "b"}


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def first_error(path: Path) -> str:
    """What reading stops at, whatever the records hold."""
    try:
        return next(str(record) for record, _ in read_records(path) if isinstance(record, DataError))
    except DataError as problem:
        return str(problem)


def test_json_lines_resolve_images_beside_the_file(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows({**FLAT, "image": "a.png"}, FLAT)
    rows = read_rows(path)
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:2"]
    assert rows[0].images == (tmp_path.resolve() / "a.png",)
    assert rows[1].images == ()


def test_image_root(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows({**FLAT, "image": "b.png"})
    (tmp_path / "pictures").mkdir()
    assert read_rows(path, image_root=tmp_path / "pictures")[0].images == (tmp_path.resolve() / "pictures" / "b.png",)
    with pytest.raises(DataError, match="is not a directory"):
        read_rows(path, image_root=tmp_path / "none")


def test_blank_lines_count_but_hold_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(FLAT) + "\r\n\n" + json.dumps(FLAT))
    assert [row.source for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_json_list_names_the_line_of_each_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([FLAT, {**FLAT, "chosen": "c\nd"}], indent=1))
    rows = read_rows(path)
    assert [row.source for row in rows] == [f"{path}:2", f"{path}:7"]
    assert rows[1].chosen == "c\nd"


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.integers() | st.none(), max_size=3), min_size=1))
def test_a_json_list_is_read_as_json_reads_it(records: list[dict[str, Any]]) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"cwdpo-list-{os.getpid()}.json"
    for indent in (None, 2):
        path.write_text(json.dumps(records, indent=indent))
        found = list(read_records(path))
        assert [record for record, _ in found] == records
        lines = path.read_text().split("\n")
        assert all("{" in lines[int(source.rsplit(":", 1)[1]) - 1] for _, source in found)
    path.unlink()


def test_parquet_with_embedded_images_and_nulls(tmp_path: Path) -> None:
    Image.new("RGB", (3, 5)).save(tmp_path / "a.png")
    picture = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "/gone/a.png"}
    table = pa.Table.from_pylist([{**FLAT, "images": [picture]}, {**FLAT, "images": None}, {**FLAT, "images": []}])
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = read_rows(tmp_path / "rows.parquet")
    assert open_image(rows[0].images[0], source="").size == (3, 5)
    assert [len(row.images) for row in rows] == [1, 0, 0]
    assert rows[1].source == f"{tmp_path / 'rows.parquet'}:2"


def test_datasets_directory(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}]
    records = [{"prompt": prompt, "chosen": "a", "rejected": "b", "images": [Image.new("RGB", (3, 5))]}] * 3
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "prompt": [{"role": text, "content": [{"type": text, "text": text}]}],
            "chosen": text,
            "rejected": text,
            "images": datasets.List(datasets.Image()),
        }
    )
    saved = datasets.Dataset.from_list(records, features=features)
    saved.save_to_disk(str(tmp_path / "one"))
    rows = read_rows(tmp_path / "one")
    assert len(rows) == 3
    assert isinstance(rows[0].images[0], bytes)
    assert open_image(rows[0].images[0], source="").size == (3, 5)
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "many"))
    assert "several splits. Give one of them:" in refused(tmp_path / "many")


def test_compressed_files(tmp_path: Path) -> None:
    for name, text in {"a.jsonl.gz": json.dumps(FLAT), "a.json.GZ": json.dumps([FLAT])}.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
        assert [(row.chosen, row.source) for row in read_rows(tmp_path / name)] == [("a", f"{tmp_path / name}:1")]
    whole = gzip.compress(json.dumps(FLAT).encode() * 99)
    for damaged in (b"no gzip", whole[:40]):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        assert "not a whole gzip file" in first_error(tmp_path / "a.jsonl.gz")


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    messages = json.dumps([{"role": "user", "content": "What, then?"}]).replace('"', '""')
    lines = [
        "\ufeff,prompt,chosen,rejected,images,id",
        f'0,"{messages}","a, b",b,"[""a.png"", ""b.png""]",1',
        '1,"two\nlines",None,,c.png,2',
        "1,x",
        "2,Hi,a,b,,3",
    ]
    path.write_text("\n".join(lines))
    (first, _), (second, source), (short, _), (last, at) = read_records(path)
    row = row_from_record(first, source="", roots=ImageRoots(tmp_path))
    assert (row.prompt[0].parts[-1], row.chosen, row.id) == ("What, then?", "a, b", "1")
    assert [image.name for image in row.images] == ["a.png", "b.png"]
    assert second == {"prompt": "two\nlines", "chosen": "None", "images": "c.png", "id": "2"}
    assert (source, at) == (f"{path}:3", f"{path}:6")
    assert "5: 2 cells, but there are 6 columns" in str(short)
    assert last["chosen"] == "a"
    (tmp_path / "rows.tsv").write_text("prompt\tchosen\nHi\ta, b\n")
    assert read_rows(tmp_path / "rows.tsv")[0].chosen == "a, b"
    path.write_text("prompt,prompt\na,b\n")
    assert ":1: the columns need names, each once" in refused(path)
    path.write_bytes(b"prompt,chosen\na,\xff\n")
    assert "not a table in UTF-8" in refused(path)
    path.write_text('prompt,chosen\na,"' + "x" * 200_000 + '"\n')
    assert len(read_rows(path)[0].chosen) == 200_000
    path.write_text('prompt,chosen\na,"never closed\n')
    assert "not a table" in refused(path)


def test_patterns_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in (1, 0):
        table = pa.Table.from_pylist([{**FLAT, "chosen": f"{number}", "image": "a.png"}])
        pq.write_table(table, folder / f"train-0000{number}-of-00002.parquet")
    (folder / "README.md").write_text("# Data")
    for path in (folder, folder / "train-*.parquet", tmp_path / "d*" / "*.parquet"):
        assert [row.chosen for row in read_rows(path)] == ["0", "1"]
    assert read_rows(folder)[1].source == f"{folder}/train-00001-of-00002.parquet:1"
    assert read_rows(folder / "train-*")[0].images == (folder.resolve() / "a.png",)
    assert read_rows(tmp_path / "d*" / "*.parquet")[0].images == (tmp_path.resolve() / "a.png",)
    pq.write_table(pa.Table.from_pylist([FLAT]), folder / "test-00000-of-00001.parquet")
    assert f"several splits. Give one of them: {folder}/test-* or {folder}/train-*" in refused(folder)
    (folder / "more.jsonl").touch()
    assert f"several kinds. Name those that belong together: {folder}/*.jsonl or {folder}/*.parquet" in refused(folder)


def test_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(FLAT).encode()

    def second(line: bytes) -> str:
        path.write_bytes(good + b"\n" + line + b"\n" + good)
        assert [isinstance(record, DataError) for record, _ in read_records(path)] == [False, True, False]
        return refused(path)

    assert second(b'{"prompt": "Hi",').startswith(":2: the line ends too early, at column 16: } is missing.")
    cut = {b'{"p": [{"a': '"}]}', b'{"p": "a\\"': '"}', b'{"p": "a\\\\"': "}", b'{"p": "}': '"}', b'{"p": [1': "]}"}
    for line, missing in {key: value for key, value in cut.items() if not key.endswith(b"}")}.items():
        assert f"the line ends too early, at column {len(line)}: {missing} is missing." in second(line)
    for line in (b'{"p": "a, "q": 1}', b'{"p": 1, "q: 2}', b'{"p": [1}', b'{"p": 1}}'):
        assert second(line).startswith(":2: broken JSON at column ")
    assert second(b"{'prompt': 1}").startswith(":2: broken JSON at column 2")
    assert second(good + good).startswith(":2: broken JSON")
    assert second(b'"text"').startswith(":2: a row is a str")
    assert second(b'{"prompt": "\xff"}').startswith(":2: byte 13 of the line is not UTF-8")
    assert second(b'{"chosen": "a", "chosen": "b"}').startswith(":2: the key 'chosen' stands twice")
    assert second(b"[" * 100_000).startswith(":2: ")
    assert second(b'{"id": ' + b"9" * 5000 + b"}").startswith(":2: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1},\n{"a" 1}\n]', ":3: broken JSON at column 6"),
        ('[{"a": 1}\n{"a": 1}]', ":2: broken JSON at column 1: expected ','"),
        ('[{"a": 1},\n]', ":2: broken JSON at column 1: a comma before the end"),
        ('[{"a": 1}]\nx', ": more text after the end of the list"),
        ('[{"a": 1}', "broken JSON"),
        ('{"a": 1}', ":1: broken JSON at column 1: expected '['"),
        ("[\n3]", ":2: a row is a int"),
        ('[\n\n{"a": 1, "a": 2}]', ":3: the key 'a' stands twice"),
        ("[]", ": holds no row"),
        ("", ": holds no row"),
    ],
)
def test_broken_lists(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert message in first_error(path)


@pytest.mark.parametrize(("name", "text"), [("ROWS.JSONL", json.dumps(FLAT)), ("Rows.Json", json.dumps([FLAT]))])
def test_endings_may_be_in_capitals(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [row.chosen for row in read_rows(tmp_path / name)] == ["a"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_encodings(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FLAT).encode())
    assert ":1: the file begins with a UTF-8 byte-order mark" in refused(path)
    path.write_bytes(json.dumps(FLAT).encode("utf-16"))
    assert ":1: the file begins with a UTF-16 byte-order mark" in refused(path)
    path.write_bytes(b'["\xe9"]')
    assert "not UTF-8" in refused(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.jsonl")
    empty = {"empty.jsonl": "holds no row", "rows.csv": "holds no row"}
    for name, message in {**empty, "rows.txt": "'.txt' are not read", "rows": "'' are not"}.items():
        (tmp_path / name).touch()
        assert message in refused(tmp_path / name)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "holds no row" in refused(tmp_path / "blank.jsonl")
    (tmp_path / "text.parquet").write_text("not parquet")
    assert "not a readable parquet file" in refused(tmp_path / "text.parquet")
    (tmp_path / "directory").mkdir()
    assert " is an empty directory, and rows are needed" in refused(tmp_path / "directory")
    assert "matches no file" in refused(tmp_path / "none-*.parquet")
    name = tmp_path / "openbmb" / "RLAIF-V-Dataset"
    assert "For the data set openbmb/RLAIF-V-Dataset of the Hugging Face hub, write hf:openbmb/RLAIF" in refused(name)
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "not a file" in refused(tmp_path / "pipe.jsonl")


def rows(count: int) -> list[Row]:
    return [Row((), str(index)) for index in range(count)]


def test_split_is_disjoint_complete_and_repeatable() -> None:
    first, second = split_rows(rows(40), 0.75, seed=3)
    assert (len(first), len(second)) == (30, 10)
    assert sorted(int(row.chosen) for row in first + second) == list(range(40))
    assert (first, second) == split_rows(rows(40), 0.75, seed=3)
    assert first != split_rows(rows(40), 0.75, seed=4)[0]
    assert [int(row.chosen) for row in first] == sorted(int(row.chosen) for row in first)
    assert [int(row.chosen) for row in second] != list(range(30, 40))


def test_split_at_its_ends() -> None:
    assert [len(split_rows(rows(5), fraction, seed=0)[0]) for fraction in (0.25, 0.45, 0.5)] == [1, 2, 3]
    assert split_rows(rows(3), 1.0, seed=0) == (rows(3), [])
    assert split_rows(rows(3), 0.0, seed=0) == ([], rows(3))
    with pytest.raises(ConfigError, match="there is only 1"):
        split_rows(rows(1), 0.75, seed=0)
    for fraction in (-0.1, 75, float("nan")):
        with pytest.raises(ConfigError, match="from 0 to 1"):
            split_rows(rows(3), fraction, seed=0)
