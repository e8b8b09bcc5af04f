"""Where names of images start, what may be read, and images that are text."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data import image_roots
from cwdpo.data.image_roots import ImageRoots, parse_roots, read_image
from cwdpo.data.images import open_image
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import ImageSource
from cwdpo.errors import DataError


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Data whose pictures are links into a second directory."""
    (tmp_path / "data").mkdir()
    (tmp_path / "store").mkdir()
    Image.new("RGB", (2, 3)).save(tmp_path / "store" / "0.png")
    (tmp_path / "data" / "images").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "rows.jsonl").write_text('{"image": "images/0.png", "prompt": "What?", "chosen": "red"}')
    return tmp_path.resolve()


def test_links_into_a_second_root_may_be_followed(linked: Path) -> None:
    data, store = linked / "data", linked / "store"
    with pytest.raises(DataError) as caught:
        read_rows(data / "rows.jsonl")
    message = str(caught.value)
    assert "a link that leads out of the image root" in message
    advice = message.partition("--image-root ")[2].split(" ")[0]
    for roots in (advice, f"{data}{os.pathsep}{store}", [data, store]):
        assert parse_roots(roots).find("images/0.png", source="") == store / "0.png"
    assert read_rows(data / "rows.jsonl", image_root=advice)[0].images == (store / "0.png",)
    assert parse_roots([data, store]).find(str(store / "0.png"), source="") == store / "0.png"


def test_a_directory_with_a_colon_in_its_name_is_one_root(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert parse_roots(str(tmp_path / "a:b")).start == tmp_path.resolve() / "a:b"
    with pytest.raises(DataError, match="none is not a directory"):
        parse_roots(f"{tmp_path}{os.pathsep}none")


def test_a_snapshot_of_the_hub_may_read_its_own_blobs_alone(tmp_path: Path) -> None:
    mine, other = (tmp_path / f"datasets--owner--{name}" for name in ("mine", "other"))
    for repository in (mine, other):
        (repository / "blobs").mkdir(parents=True)
        (repository / "blobs" / "f00").write_bytes(b"x")
    snapshot = mine / "snapshots" / "abc" / "pictures"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to(Path("../../../blobs/f00"))
    (snapshot / "b.png").symlink_to(other / "blobs" / "f00")
    roots = ImageRoots(mine / "snapshots" / "abc")
    assert roots.find("pictures/a.png", source="") == mine.resolve() / "blobs" / "f00"
    with pytest.raises(DataError, match="leads out of the image root"):
        roots.find("pictures/b.png", source="")


def test_each_directory_is_followed_once(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = parse_roots([linked / "data", linked / "store"])
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(image_roots.os.path, "realpath", lambda path: asked.append(str(path)) or real(path))
    for name in ("images/0.png", "images/1.png", "images/0.png", "images/2.png"):
        roots.find(name, source="")
    assert asked == [str(linked / "data" / "images")]


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((20, 30), 50).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def read(value: Any) -> ImageSource:
    return read_image(value, ImageRoots("/nowhere"), source="rows.jsonl:7", where="`images`[0]")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_images_in_base64(kind: str) -> None:
    raw = encoded(kind)
    text = base64.b64encode(raw).decode()
    lines = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    spellings: list[Any] = [text, text.rstrip("="), lines, base64.urlsafe_b64encode(raw).decode()]
    spellings += [f"data:image/{kind.lower()};base64,{text}", {"bytes": text, "path": None}, {"base64": text}]
    spellings += [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}"}}]
    for value in spellings:
        assert read(value) == raw
    assert open_image(read(text), source="").size == (20, 30)


def refused(value: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(value)
    message = str(caught.value)
    assert message.startswith("rows.jsonl:7: ")
    assert len(message) < 400
    return message


def test_base64_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not base64" in refused({"bytes": "no!" * 99})
    assert "is not base64" in refused("data:image/png;base64,é" + "A" * 999)
    assert "without base64" in refused("data:image/svg+xml,<svg/>" + "A" * 999)
    assert "is an empty image" in refused("data:image/png;base64,")
    assert "no path and no bytes" in refused({"bytes": None, "path": None})
    monkeypatch.setattr(image_roots, "MAX_FILE_BYTES", 1000)
    assert "more than an image of 1,000 bytes needs" in refused({"bytes": "A" * 1340})
    assert "more than an image" in refused("iVBORw0KGgo" + "A" * 1340)


def test_names_that_begin_as_base64_does() -> None:
    for name in ("iVBORw0KGgo.png", "/9j/pictures/" + "a" * 80 + ".jpg", "Qk/" + "a" * 80 + ".bmp"):
        assert isinstance(read_image(name, ImageRoots("/"), source="", where=""), Path)


def test_long_names_are_shortened() -> None:
    for name in ("x" * 5000, "x/" * 2000 + "a.png", "a" * 100 + ".png"):
        with pytest.raises(DataError) as caught:
            open_image(read_image(name, ImageRoots("/"), source="rows.jsonl:7", where=""), source="rows.jsonl:7")
        assert name not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_name_is_looked_for_in_all_roots_in_their_order(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/a.png", "two/b.png", "three/b.png", "out.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "two" / "c.png").symlink_to(tmp_path / "out.png")
    roots = ImageRoots(*(tmp_path / name for name in ("one", "two", "three")))
    for name, found in {"a.png": "one/a.png", "b.png": "two/b.png", "d.png": "one/d.png"}.items():
        assert roots.find(name, source="x:1") == tmp_path / found
    for name in ("c.png", "../out.png"):  # in no root, whatever the name
        with pytest.raises(DataError, match="Only files inside the image roots are read"):
            roots.find(name, source="x:1")
