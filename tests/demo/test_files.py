"""The demo's files to play with."""

import sys
from pathlib import Path

import pytest

from cwdpo.cli import app
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.reading import read_rows
from cwdpo.demo import files
from cwdpo.demo.files import write_files
from cwdpo.demo.plans import DemoSettings, base_checkpoint, make_plans
from cwdpo.errors import UserError


def test_files_are_as_a_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TRAIN_ROWS", 6)
    monkeypatch.setattr(files, "HELD_OUT_ROWS", 3)
    written = write_files(tmp_path / "play")
    assert [len(read_rows(path)) for path in (written.train, written.held_out)] == [6, 3]
    assert all(row.gentle and row.rejected and row.images for row in read_rows(written.train))
    assert written.image == tmp_path / "play" / "images" / "eval-00000.png"
    assert {path.name for path in written.model.iterdir()} == {path.name for path in base_checkpoint().iterdir()}
    assert {path.name for path in (tmp_path / "play").iterdir()} == {
        *("tiny-vlm", "train.jsonl", "held_out.jsonl", "images", "demo.yaml"),
    }
    again = write_files(tmp_path / "again")
    assert again.train.read_bytes() == written.train.read_bytes()
    with pytest.raises(UserError, match="play exists already, and nothing is overwritten"):
        write_files(tmp_path / "play")


def test_the_recipe_is_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "TRAIN_ROWS", 1)
    monkeypatch.setattr(files, "HELD_OUT_ROWS", 1)
    ours = read_recipe(write_files(tmp_path / "play").recipe)
    names = {name: Path(name) for name in ("base", "train", "held_out", "stage2_rows")}
    theirs = make_plans(Path("o"), **names, settings=DemoSettings(), seed=0)[2].recipe
    assert ours.stage1 is not None and ours.stage2 is not None  # noqa: PT018
    assert theirs.stage1 is not None and theirs.stage2 is not None  # noqa: PT018
    assert (ours.stage1.objective, ours.stage2.beta, ours.stage2.cooling) == (
        theirs.stage1.objective,
        theirs.stage2.beta,
        theirs.stage2.cooling,
    )
    for mine, its in ((ours.stage1.trainer, theirs.stage1.trainer), (ours.stage2.trainer, theirs.stage2.trainer)):
        assert mine["learning_rate"] == its["learning_rate"]
    assert ours.model.lora is theirs.model.lora is None
    assert (ours.model.dtype, ours.model.freeze_vision) == (theirs.model.dtype, theirs.model.freeze_vision)


@pytest.mark.parametrize("more", [["--small"], ["--out", "x"]])
def test_options_of_training_have_no_place_beside_files(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cwdpo", "demo", "--files", str(tmp_path / "p"), *more])
    with pytest.raises(SystemExit, match="2"):
        app.main()
    assert f"{more[0]} has no effect beside --files, which trains nothing." in capsys.readouterr().err
    assert not (tmp_path / "p").exists()
