"""Slips in files of rows, and other files in their place: the message says what to write."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data.images import peek_image
from cwdpo.data.reading import read_rows
from cwdpo.errors import DataError

ROW = {"prompt": "What is it?", "chosen": "A disc.", "rejected": "A ring."}


def complaint(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (str(ROW).encode(), """rows.jsonl:1: broken JSON at column 2: """),
        (str(ROW).encode(), """Write JSON, with "..." in place of '...'"""),
        (json.dumps(ROW).encode()[:-1] + b",}", "Take out the comma before the closing bracket."),
        (json.dumps(ROW).encode() + b"\r" + json.dumps(ROW).encode(), "Its lines end in the old way (CR alone)"),
        (json.dumps(ROW).encode() + b",\n", "Take out the comma at the end of the line."),
        (gzip.compress(json.dumps(ROW).encode(), mtime=0), "rows.jsonl is packed by gzip. Name it rows.jsonl.gz."),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself. Fetch that: `git"),
        (b"<!DOCTYPE html>", "rows.jsonl is a web page."),
        (
            json.dumps([ROW]).encode(),
            "a row is a list, but must be an object. Name a file with one list of objects .js",
        ),
        (json.dumps(ROW).encode("utf-16-le"), "rows.jsonl:1: this looks like UTF-16 text"),
        (json.dumps(ROW).encode("utf-16"), "begins with a UTF-16 byte-order mark"),
        (json.dumps([ROW], indent=2).encode(), "For a list of objects, [{...}, {...}], name the file .json."),
        (json.dumps(ROW, indent=2).encode(), "rows.jsonl:1: this is JSON over many lines"),
    ],
)
def test_text_that_is_not_one_object_a_line(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert expected in complaint(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            "prompt;chosen;rejected\nx;y;z\n",
            "a.csv:1: its columns seem to be separated by ';'. Save the table",
        ),
        ("a.csv", "prompt\tchosen\nx\ty\n", "with commas, or name it .tsv."),
        ("a.tsv", "prompt|chosen\nx|y\n", "separated by '|'. Save the table with tabs."),
        ("a.csv", gzip.compress(b"prompt,chosen\n", mtime=0), "a.csv is packed by gzip. Name it a.csv.gz."),
        (
            "a.csv",
            "Image,Question,Answer,Bad answer\na.png,x,y,z\n",
            "Name `Image` as `image` and `Question` as `prompt` and `Answer` as `chosen` and `Bad answer` as "
            "`rejected`, as in the header image,prompt,chosen,rejected.",
        ),
        ("a.tsv", "query\tchosen\nx\ty\n", "as in the header image\tprompt\tchosen\trejected."),
        (
            "a.csv",
            "a.png,What is it?,A disc.,A ring.\nb.png,Where?,Left.,Right.\n",
            "a.csv:2: line 1, 'a.png, What is it?, A disc., A ring.', has no name of a column. Put the header",
        ),
        (
            "a.json",
            json.dumps({"data": [ROW]}),
            "a.json: its rows lie under `data`. Write that list alone",
        ),
        (
            "dataset_info.json",
            json.dumps({"mine": {"file_name": "mine.jsonl", "ranking": True}}),
            "dataset_info.json: a list of data sets, not rows. Name the file of the rows: mine.jsonl.",
        ),
        ("a.csv", "What is it?,A disc.,A ring.\n", "holds one line, which is taken for the names of the columns"),
    ],
)
def test_tables_of_another_kind(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert expected in complaint(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"chosen": None, "Chosen": "A disc."},
            "`chosen` has no value (null or NaN). Write a text, or take the row out.",
        ),
        ({"chosen": float("nan")}, "`chosen` has no value (null or NaN)."),
        ({"prompt": None}, "`prompt` has no value (null or NaN)."),
    ],
)
def test_answers_without_a_value(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | changes) + "\n")
    assert f"rows.jsonl:1: {expected}" in complaint(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("key", "other", "advice"),
    [
        ("chosen", "Chosen", "Name `Chosen` as `chosen`"),
        ("chosen", "chosen ", "Name `chosen ` as `chosen`"),
        ("prompt", "query", "Name `query` as `prompt`"),
        ("chosen", "accepted", "Name `accepted` as `chosen`"),
    ],
)
def test_columns_by_another_word(tmp_path: Path, key: str, other: str, advice: str) -> None:
    row = {(other if name == key else name): value for name, value in ROW.items()}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert f"{advice}, as in" in complaint(tmp_path / "rows.jsonl")


def test_all_columns_by_other_words_are_named_at_once(tmp_path: Path) -> None:
    row = dict(zip(("query", "response", "rejected_response"), ROW.values(), strict=True))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    said = "Name `query` as `prompt` and `response` as `chosen` and `rejected_response` as `rejected`, as in"
    assert said in complaint(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        (("train.jsonl", "test.jsonl"), True),
        (("rows_train.jsonl", "rows_val.jsonl"), True),
        (("train.jsonl", "train-gentle.jsonl"), False),
        (("train.jsonl", "contest.jsonl"), False),
    ],
)
def test_a_folder_is_of_one_split(tmp_path: Path, names: tuple[str, str], refused: bool) -> None:
    for name in names:
        (tmp_path / name).write_text(json.dumps(ROW) + "\n")
    if refused:
        said = f"holds several splits. Give one of them: {tmp_path}/{names[0]} or {tmp_path}/{names[1]} (in a recipe"
        assert said in complaint(tmp_path)
    assert len(read_rows(f"{tmp_path}/*.jsonl" if refused else tmp_path)) == 2  # a pattern says that all are meant


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("trian.jsonl", "Did you mean {0}/train.jsonl?"),
        ("dat/rows.jsonl", "There is no directory {0}/dat. Did you mean {0}/data/rows.jsonl?"),
        ("nowhere/rows.jsonl", "There is no directory {0}/nowhere."),
        ("data\\rows.jsonl", "Directories are separated by / here: write data/rows.jsonl."),
        ("$DATA/rows.jsonl", "Variables such as $DATA are not replaced here: write the path itself."),
        ("xyz", "Write a .jsonl, .json, .parquet, .csv or .tsv file, or a folder of such."),
    ],
)
def test_files_that_are_not_there(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "train.jsonl").touch()
    (tmp_path / "data").mkdir()
    path = tmp_path / name
    assert complaint(path) == f"{path}: no such file. {expected.format(tmp_path)}"


def test_images_with_another_separator(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist. Directories are separated by / here: write images/a.png\.$"):
        peek_image(tmp_path / "images\\a.png", source="rows.jsonl:1")


def test_a_pointer_in_place_of_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "rows.parquet is a Git LFS pointer" in complaint(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    assert "rows.parquet: not a readable parquet file" in complaint(tmp_path / "rows.parquet")


def test_directories_of_other_things(tmp_path: Path) -> None:
    for name in ("model/config.json", "adapters/adapter_config.json", "run/recipe.yaml", "run/metrics.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert "model is a model, and rows are needed" in complaint(tmp_path / "model")
    assert "adapters is a model's adapters, and rows are needed" in complaint(tmp_path / "adapters")
    assert "run is an unfinished run, and rows are needed" in complaint(tmp_path / "run")


def test_an_image_that_another_root_would_find(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "one.png")
    for name, expected in {
        "saved/images/one.png": f"It would be found from {tmp_path}: give that as --image-root",
        "images/onne.png": f"Did you mean {tmp_path}/images/one.png?",
        "saved/two.png": "Correct the path, or give the directory that it starts at: --image-root",
    }.items():
        with pytest.raises(DataError, match="does not exist") as caught:
            peek_image(tmp_path / name, source="rows.jsonl:1")
        assert expected in str(caught.value)
