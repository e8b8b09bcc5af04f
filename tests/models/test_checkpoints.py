"""A checkpoint is whole, byte for byte, or it is not taken."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cwdpo.errors import UserError
from cwdpo.models.checkpoints import (
    MANIFEST,
    begin_checkpoint,
    find_damage,
    has_checkpoint,
    last_checkpoint,
    no_unfinished_checkpoints,
    rotate_checkpoints,
    seal_checkpoint,
    verified_checkpoint,
)
from cwdpo.models.saving import remove_litter
from cwdpo.records import RunDirectory, write_text

Spoil = Callable[[Path], object]


def fill(checkpoint: Path, *, value: float = 1.0) -> Path:
    (checkpoint / "sub").mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((8,), value)}, checkpoint / "model.safetensors")
    torch.save({"m": torch.full((8,), value)}, checkpoint / "optimizer.pt")
    (checkpoint / "sub" / "more.bin").write_bytes(b"x" * 100)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    return checkpoint


def sealed(directory: Path, step: int) -> Path:
    checkpoint = directory / f"checkpoint-{step}"
    begin_checkpoint(checkpoint)
    fill(checkpoint, value=step)
    seal_checkpoint(checkpoint)
    return checkpoint


def flip(name: str, place: int = -1) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[place] ^= 1
        (checkpoint / name).write_bytes(content)

    return spoil


def cut(name: str) -> Spoil:
    return lambda checkpoint: os.truncate(checkpoint / name, 10)


DAMAGE: dict[str, tuple[Spoil, str]] = {
    "a bit": (flip("model.safetensors"), "the content of model.safetensors has changed"),
    "a bit of the optimizer": (flip("optimizer.pt", 200), "the content of optimizer.pt has changed"),
    "deep": (flip("sub/more.bin", 0), "the content of sub/more.bin has changed"),
    "cut": (cut("optimizer.pt"), "optimizer.pt has 10 bytes, and had "),
    "empty": (lambda c: (c / "trainer_state.json").write_bytes(b""), "trainer_state.json has 0 bytes, and had 18"),
    "gone": (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
    "manifest": (cut(MANIFEST), "its manifest.json cannot be read"),
    "list": (lambda c: (c / MANIFEST).write_text("[1]"), "its manifest.json cannot be read"),
    "strange": (lambda c: (c / MANIFEST).write_text('{"files": {"a": 3}}'), "its manifest.json cannot be read"),
    "deep manifest": (lambda c: (c / MANIFEST).write_text("[" * 100_000), "its manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_an_older_whole_one_is_taken_in_words(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = sealed(tmp_path, 9), sealed(tmp_path, 10)
    spoil, words = DAMAGE[kind]
    spoil(new)
    assert has_checkpoint(tmp_path)
    assert verified_checkpoint(tmp_path) == old
    (said,) = caplog.messages
    assert said.startswith(f"{new} is damaged ({words}")
    assert said.endswith(f"it is removed, and {old} is taken")
    assert os.listdir(tmp_path) == ["checkpoint-9"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_where_all_are_damaged_nothing_is_removed_and_nothing_begins_again(kind: str, tmp_path: Path) -> None:
    only = sealed(tmp_path, 3)
    spoil, words = DAMAGE[kind]
    spoil(only)
    with pytest.raises(UserError, match="no whole checkpoint is left beside it") as raised:
        verified_checkpoint(tmp_path)
    assert words in str(raised.value)
    assert has_checkpoint(tmp_path)
    assert only.is_dir()


def test_a_whole_one_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = sealed(tmp_path, 2)
    assert find_damage(one, thorough=True) is None
    assert last_checkpoint(tmp_path) == verified_checkpoint(tmp_path) == one
    said = json.loads((one / MANIFEST).read_text())["files"]
    assert sorted(said) == ["model.safetensors", "optimizer.pt", "sub/more.bin", "trainer_state.json"]
    assert said["sub/more.bin"]["bytes"] == 100
    assert not caplog.messages


def test_sizes_are_compared_where_nothing_is_read(tmp_path: Path) -> None:
    one = sealed(tmp_path, 2)
    flip("model.safetensors")(one)
    assert find_damage(one, thorough=False) is None
    cut("model.safetensors")(one)
    assert find_damage(one, thorough=False) is not None


def test_what_was_not_sealed_is_litter_whatever_it_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = sealed(tmp_path, 2), tmp_path / "checkpoint-4"
    begin_checkpoint(two)
    fill(two)  # killed after the Trainer's last file
    assert last_checkpoint(tmp_path) == one
    with no_unfinished_checkpoints(tmp_path):
        assert os.listdir(tmp_path) == ["checkpoint-2"]
    assert caplog.messages == [f"{two} was not written to its end; removing it"]
    begin_checkpoint(one)  # saved once more, and killed
    assert last_checkpoint(tmp_path) is None
    assert verified_checkpoint(tmp_path) is None
    assert os.listdir(tmp_path) == []


def test_checkpoints_of_other_programs_are_taken_where_their_files_open(tmp_path: Path) -> None:
    old, new = fill(tmp_path / "checkpoint-1"), fill(tmp_path / "checkpoint-2")
    assert verified_checkpoint(tmp_path) == new
    data = (new / "optimizer.pt").read_bytes()
    flip("optimizer.pt", data.index(torch.ones(8).numpy().tobytes()))(new)
    assert "optimizer.pt cannot be read" in str(find_damage(new, thorough=True))
    cut("model.safetensors")(new)
    assert verified_checkpoint(tmp_path) == old


ROTATIONS: list[tuple[int | None, int | None, list[int]]] = [
    (None, None, [1, 2, 10]),
    (0, None, [1, 2, 10]),
    (2, None, [2, 10]),
    (1, None, [10]),
    (1, 1, [1, 10]),
    (2, 1, [1, 10]),
    (3, 1, [1, 2, 10]),
]


@pytest.mark.parametrize(("limit", "best", "left"), ROTATIONS)
def test_rotation_keeps_newest_and_best(tmp_path: Path, limit: int | None, best: int | None, left: list[int]) -> None:
    for step in (1, 2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate_checkpoints(tmp_path, limit, best=None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert sorted(int(path.name[11:]) for path in tmp_path.iterdir()) == left


def test_litter_of_killed_saves_is_removed(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", resume=False)
    write_text(run.recipe, "kept: true\n")
    (run.root / "stage1").mkdir()
    for name in (".summary.json.ab12_cd3.tmp", "reference/part-000-00001.partial", "reference/cache.partial1"):
        (run.root / name).parent.mkdir(exist_ok=True)
        (run.root / name).write_text("half")
    for name in (".stage1.abcd1234/new", "checkpoints/stage1/.checkpoint-2.removed", "negatives/adapter-00001"):
        (run.root / name).mkdir(parents=True)
        (run.root / name / "model.safetensors").write_text("half")
    (run.root / ".stage2.abcd1234" / "old").mkdir(parents=True)  # killed between two renames
    (run.root / ".stage2.abcd1234" / "old" / "config.json").write_text("{}")
    assert remove_litter(run.root, older_than=0) == []
    assert len(remove_litter(run.root)) == 7
    files = sorted(str(path.relative_to(run.root)) for path in run.root.rglob("*") if path.is_file())
    assert files == ["recipe.yaml", "stage2/config.json"]


def test_a_damaged_checkpoint_is_said_before_anything_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for step in (1, 2, 3):
        sealed(tmp_path, step)
    flip("optimizer.pt", 300)(tmp_path / "checkpoint-3")
    cut("model.safetensors")(tmp_path / "checkpoint-2")
    assert verified_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert [message.split(" is damaged")[0] for message in caplog.messages] == [
        str(tmp_path / f"checkpoint-{step}") for step in (3, 2)
    ]
