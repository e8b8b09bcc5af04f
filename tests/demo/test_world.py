"""The world on disk."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cwdpo.demo.world import check_caption, read_scenes, write_world


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_pictures_and_truth_agree(tmp_path: Path) -> None:
    paths = write_world(tmp_path / "world", seed=0, train=300, eval=20)
    truth = read_scenes(paths.scenes)
    train, held_out = read(paths.train), read(paths.eval)
    assert (len(train), len(held_out)) == (300, 20)
    assert {row["id"] for row in train + held_out} == set(truth)
    for row in train + held_out:
        scene = truth[row["id"]]
        assert check_caption(row["chosen"], scene).exact
        assert not check_caption(row["rejected"], scene).exact
        assert not check_caption(row["gentle"], scene).exact
        with Image.open(paths.train.parent / row["images"][0]) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (32, 32), "RGB")


@pytest.mark.slow
def test_seven_in_ten_rejected_captions_are_easy(tmp_path: Path) -> None:
    kinds = Counter(row["kind"] for row in read(write_world(tmp_path, seed=1, train=1000, eval=0).train))
    assert kinds["gentle"] / 1000 == pytest.approx(0.3, abs=0.05)
    assert all(
        kinds[kind] / 1000 == pytest.approx(0.7 / 3, abs=0.05) for kind in ("other_scene", "shuffled", "off_topic")
    )


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    worlds = [write_world(tmp_path / name, seed=seed, train=6, eval=3) for name, seed in (("a", 2), ("b", 2), ("c", 3))]
    content = [(world.train.read_bytes(), (world.images / "eval-00002.png").read_bytes()) for world in worlds]
    assert content[0] == content[1]
    assert content[0][0] != content[2][0]
    assert content[0][1] != content[2][1]


def test_held_out_rows_do_not_depend_on_the_number_of_training_rows(tmp_path: Path) -> None:
    few, many = (write_world(tmp_path / str(train), seed=0, train=train, eval=5) for train in (1, 9))
    assert few.eval.read_bytes() == many.eval.read_bytes()
