"""Pictures: shown as they are when small, shrunk when large, refused with a note otherwise."""

import base64
import io
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.report.examples import MOST_ITEMS, Item, read_gallery


def gallery(directory: Path, *images: Any) -> tuple[list[Item], list[str]]:
    notes: list[str] = []
    return read_gallery(directory, {"gallery": [{"image": image} for image in images]}, notes), notes


def test_photo_is_shrunk(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (800, 400), os.urandom(800 * 400 * 3))
    noise.save(tmp_path / "photo.png")
    (item,), notes = gallery(tmp_path, "photo.png")
    assert notes == []
    assert item.image is not None
    shown = Image.open(io.BytesIO(base64.b64decode(item.image.split(",")[1])))
    assert (shown.size, item.small) == ((320, 160), False)


def test_small_file_of_many_pixels_is_shrunk_too(tmp_path: Path) -> None:
    Image.new("L", (4000, 4000)).save(tmp_path / "flat.png")
    (item,), _ = gallery(tmp_path, "flat.png")
    assert item.image is not None
    assert item.image.startswith("data:image/jpeg;base64,")


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (run / "link.png").symlink_to(tmp_path / "outside.png")
    (run / "text.png").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(tmp_path / "whole.png")
    (run / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    os.mkfifo(run / "pipe.png")
    bad = ["../outside.png", "link.png", "text.png", "half.png", "pipe.png", "none.png", "\0", ""]
    items, notes = gallery(run, *bad)
    assert [item.image for item in items] == [None] * len(bad)
    assert len(notes) == len(bad)
    assert all("run: the picture" in note for note in notes)
    assert not [note for note in notes if str(run) in note]


def test_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (12, 12)).save(tmp_path / "warned.png")  # between once and twice the limit Pillow only warns
    (item,), notes = gallery(tmp_path, "warned.png")
    assert item.image is None
    assert "exceeds limit" in notes[0]


def test_broken_chunk_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") :] = b"I\0AT" + zlib.compress(b"x")
    (tmp_path / "a.png").write_bytes(content)
    (item,), notes = gallery(tmp_path, "a.png")
    assert item.image is None
    assert len(notes) == 1


def test_row_without_a_picture_is_no_mistake(tmp_path: Path) -> None:
    (item,), notes = gallery(tmp_path, None)
    assert item.image is None
    assert notes == []


def test_pictures_left_out_are_counted(tmp_path: Path) -> None:
    items, notes = gallery(tmp_path, *[None] * (MOST_ITEMS + 2))
    assert len(items) == MOST_ITEMS
    assert "2 more pictures" in notes[0]


@pytest.mark.parametrize("broken", [None, 3, "x", {"image": "a"}, [1, "x", None]])
def test_broken_gallery_shows_nothing(tmp_path: Path, broken: Any) -> None:
    assert read_gallery(tmp_path, {"gallery": broken}, []) == []
