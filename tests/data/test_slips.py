"""Slips in files of rows, and other files in their place: the message says what to write."""

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
        ("a.csv", "What is it?,A disc.,A ring.\n", "holds one line, which is taken for the names of the columns"),
    ],
)
def test_tables_of_another_kind(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    assert expected in complaint(tmp_path / name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"chosen": None, "Chosen": "A disc."}, "`chosen` has no value (null). Write a text, or take the row out."),
        ({"chosen": float("nan")}, "`chosen` has no value (null)."),
        ({"prompt": None}, "`prompt` has no value (null)."),
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
