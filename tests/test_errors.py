"""What is said of a path at which there is nothing."""

from pathlib import Path

import pytest

from cwdpo.errors import path_advice


@pytest.mark.parametrize(
    ("there", "name", "meant"),
    [
        ("one.png", "nope.png", ""),  # the ending alone is alike
        ("train-01.png", "trian-01.png", "train-01.png"),
        ("train.jsonl", "train.json", "train.jsonl"),
        ("recipe.yaml", "recipe.yml", "recipe.yaml"),
        ("IMG_0001.JPG", "img_0001.jpg", "IMG_0001.JPG"),
        ("Runs", "runs", "Runs"),
    ],
)
def test_names_that_are_alike_are_proposed(tmp_path: Path, there: str, name: str, meant: str) -> None:
    (tmp_path / there).touch()
    (tmp_path / "unlike.txt").touch()
    expected = f"Did you mean {tmp_path / meant}?" if meant else "Correct the path."
    assert path_advice(tmp_path / name) == expected


def test_another_case_comes_before_what_is_alike(tmp_path: Path) -> None:
    for name in ("Rows.jsonl", "row.jsonl"):
        (tmp_path / name).touch()
    assert path_advice(tmp_path / "rows.jsonl") == f"Did you mean {tmp_path / 'Rows.jsonl'}?"
