"""Images are found inside their root and opened as RGB, or one line says what is wrong."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cwdpo.data import images
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.images import image_identity, open_image, peek_image, random_crop, verify_image
from cwdpo.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(image: Path | bytes | Image.Image) -> str:
    with pytest.raises(DataError) as caught:
        open_image(image, source="rows.jsonl:7")
    message = str(caught.value)
    assert message.startswith("rows.jsonl:7: ")
    assert "\n" not in message
    return message


def escaped(name: str, root: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        ImageRoots(root).find(name, source="rows.jsonl:7")
    return str(caught.value)


def test_relative_paths_start_at_the_root_and_not_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert ImageRoots(tmp_path).find("sub/../a.png", source="") == tmp_path.resolve() / "a.png"
    assert ImageRoots(tmp_path).find(str(tmp_path / "a.png"), source="") == tmp_path.resolve() / "a.png"


def test_paths_that_leave_the_root(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (2, 2))))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    assert "leaves the image root" in escaped("../secret.png", root)
    assert "absolute path outside" in escaped(str(tmp_path / "secret.png"), root)
    assert "a link that leads out" in escaped("link.png", root)
    assert "a link that leads out" in escaped("up/secret.png", root)
    assert "--image-root" in escaped("link.png", root)
    assert ImageRoots(tmp_path).find("data/link.png", source="") == tmp_path.resolve() / "secret.png"


def test_a_sibling_directory_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    assert "outside" in escaped(str(tmp_path / "data2" / "a.png"), tmp_path / "data")


@pytest.mark.parametrize("url", ["https://x.org/a.png", "data:image/png;base64," + "A" * 9999, "zip://a.png::b.zip"])
def test_urls_are_refused(url: str, tmp_path: Path) -> None:
    message = escaped(url, tmp_path)
    assert "is a URL" in message
    assert len(message) < 400


def test_empty_names_and_rows_without_a_directory(tmp_path: Path) -> None:
    assert "the image path is ''" in escaped("", tmp_path)
    assert "image path" in escaped("a\0b", tmp_path)
    assert "image_root" in escaped("a.png", None)


def test_rows_in_memory_name_files_as_their_program_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    (tmp_path / "b.png").touch()
    monkeypatch.chdir(tmp_path / "pictures")
    roots = ImageRoots(Path.cwd(), anywhere=True)
    monkeypatch.chdir("/")  # the rows were given before
    for name, found in {"a.png": "pictures/a.png", "../b.png": "b.png", str(tmp_path / "b.png"): "b.png"}.items():
        assert roots.find(name, source="").resolve() == tmp_path / found
    with pytest.raises(DataError) as caught:
        roots.find("zebra.jpg", source="train_dataset[0]")
    assert str(caught.value) == (
        "train_dataset[0]: image 'zebra.jpg' does not exist. Correct the path. Relative paths start at the working "
        f"directory, {tmp_path}/pictures."
    )
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"does not exist. Did you mean \S+/picture\.png\?$"):
        roots.find(f"{tmp_path}/pictur.png", source="")


def test_missing_empty_and_special_files(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.png")
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refused(tmp_path / "empty.png")
    assert "is empty" in refused(b"")
    assert "not a file" in refused(tmp_path)
    assert "File name too long" in refused(tmp_path / ("a" * 5000))
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a file" in refused(tmp_path / "pipe.png")


def test_broken_files(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"):
        whole = encoded(noise, kind)
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(whole[: len(whole) // 2])
        assert re.search(r"cannot be decoded|not an image", refused(path)), kind
        assert path.name in refused(path)
    assert "not an image" in refused(b"<html>404</html>")


def test_bombs_in_both_of_pillows_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (40, 30)))
    assert open_image(bomb, source="").size == (40, 30)
    for limit in (1199, 700, 500):  # a warning, a warning and an error of Pillow
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "too large" in refused(bomb)
        assert re.search(rf"1,200 pixels, more than the {limit:,} allowed\. Make the image smaller", refused(bomb))
    assert "40 x 30 pixels, more than the 500 allowed" in refused(Image.new("RGB", (40, 30)))


def test_a_real_bomb_is_refused_before_it_is_decoded() -> None:
    assert "too large" in refused(encoded(Image.new("1", (10_000, 9_000))))


def test_files_with_too_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 20)
    assert "more than the 20 allowed" in refused(tmp_path / "a.png")


def with_texts(*, profile: bytes = b"", text: str = "", **options: object) -> bytes:
    picture = Image.effect_noise((8, 4), 60).convert("RGB")
    texts = PngInfo()
    if text:
        texts.add_itxt("XML:com.adobe.xmp", text, zip=True)
    return encoded(picture, pnginfo=texts, icc_profile=profile, **options)


def test_long_texts_and_profiles_of_png_files_are_no_damage() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({"text": "x" * 2_000_000}, {"profile": b"x" * 2_000_000}):
        image = with_texts(**options, exif=exif)
        assert peek_image(image, source="") == (8, 4)
        assert open_image(image, source="").size == (4, 8), "its EXIF data still counts"
    whole = with_texts(text="x" * 2_000_000)
    assert "cannot be decoded" in refused(whole[: len(whole) - 60])


def test_sides_have_a_bound_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = encoded(Image.new("1", (images.MAX_SIDE + 1, 1)))
    assert f"{images.MAX_SIDE + 1} x 1 pixels, more than the 32,768 allowed on a side" in refused(strip)
    with pytest.raises(DataError, match="allowed on a side"):
        peek_image(strip, source="")
    assert open_image(encoded(Image.new("1", (1, images.MAX_SIDE))), source="").size == (1, images.MAX_SIDE)


def test_errors_of_the_decoder_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(Image, "open", fail)
    assert "cannot be decoded (RuntimeError: no room)" in refused(b"x")


def test_the_file_that_is_checked_is_the_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the reading, another file is put under the same name."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (2, 3))))
    (tmp_path / "b.png").write_bytes(encoded(Image.new("RGB", (9, 9))))
    real = os.fstat

    def then_swap(number: int) -> os.stat_result:
        found = real(number)
        if (tmp_path / "b.png").exists():
            os.replace(tmp_path / "b.png", path)
        return found

    monkeypatch.setattr(os, "fstat", then_swap)
    assert open_image(path, source="").size == (2, 3)


def test_a_verified_image_is_one_that_can_be_opened(tmp_path: Path) -> None:
    noise = Image.effect_noise((160, 120), 60)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        whole = encoded(noise.convert("RGB"), kind)
        (tmp_path / kind).write_bytes(whole)
        verify_image(tmp_path / kind, source="")
        verify_image(whole, source="")
        for cut in (whole[: len(whole) // 2], whole[:20]):
            message = refused(cut)
            with pytest.raises(DataError) as caught:
                verify_image(cut, source="rows.jsonl:7")
            assert str(caught.value) == message
    for bad in (encoded(Image.new("F", (2, 2)), "TIFF"), tmp_path / "none.png", b""):
        message = refused(bad)
        with pytest.raises(DataError) as caught:
            verify_image(bad, source="rows.jsonl:7")
        assert str(caught.value) == message


def test_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 4))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to see it upright
    upright = open_image(encoded(picture, exif=exif), source="")
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


def test_modes_become_rgb() -> None:
    def seen(image: Image.Image, kind: str = "PNG") -> tuple[int, ...]:
        opened = open_image(encoded(image, kind), source="")
        assert opened.mode == "RGB"
        return opened.getpixel((0, 0))

    assert seen(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == (255, 255, 255)
    assert seen(Image.new("RGBA", (2, 2), (0, 0, 0, 128))) == (127, 127, 127)
    assert seen(Image.new("LA", (2, 2), (0, 255))) == (0, 0, 0)
    assert seen(Image.fromarray(np.full((2, 2), 257 * 99, dtype=np.uint16))) == (99, 99, 99)
    assert seen(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF") == (255, 0, 0)
    palette = Image.new("P", (2, 2))
    palette.putpalette([1, 2, 3])
    assert seen(palette) == (1, 2, 3)
    assert seen(Image.new("1", (2, 2), 1)) == (255, 255, 255)


def test_32_bit_pixels_are_refused() -> None:
    assert "32 bits a pixel" in refused(encoded(Image.new("F", (2, 2)), "TIFF"))


def test_a_peek_tells_what_the_header_tells_and_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, text, empty, cut = (tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png"))
    good.write_bytes(encoded(Image.new("RGB", (64, 64))))
    text.write_text("<html>")
    empty.touch()
    cut.write_bytes(good.read_bytes()[:60])
    for image in (text, empty, tmp_path / "none.png", tmp_path, b"", b"x"):
        message = refused(image)
        with pytest.raises(DataError) as caught:
            peek_image(image, source="rows.jsonl:7")
        assert str(caught.value) == message
    peek_image(good, source="")
    peek_image(good.read_bytes(), source="")
    peek_image(Image.new("RGB", (64, 64)), source="")
    peek_image(cut, source="")
    refused(cut)
    for limit in (4000, 1500):  # one and more than two times over Pillow's limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for image in (good, good.read_bytes(), Image.new("RGB", (64, 64))):
            message = refused(image)
            with pytest.raises(DataError) as caught:
                peek_image(image, source="rows.jsonl:7")
            assert str(caught.value) == message
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match="more than the 10 allowed"):
        peek_image(good, source="")


def test_a_crop_is_a_small_region_in_the_size_of_the_whole() -> None:
    """Red counts columns and green counts rows, so a crop's colours say which region it shows."""
    columns, rows = np.meshgrid(np.arange(200), np.arange(100))
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    shares, corners = [], set()
    for seed in range(200):
        crop = random_crop(image, seed=str(seed))
        assert crop.size == image.size
        red, green, _ = (channel for channel in np.moveaxis(np.asarray(crop).astype(int), -1, 0))
        width, height = np.ptp(red) + 1, np.ptp(green) + 1
        assert abs(width / height - 2) < 0.5
        shares.append(width * height / 20_000)
        corners.add((red.min(), green.min()))
    assert min(shares) > 0.005
    assert max(shares) < 0.23
    assert max(shares) - min(shares) > 0.15
    assert len(corners) > 150
    assert np.array_equal(random_crop(image, seed="a"), random_crop(image, seed="a"))


def test_a_crop_of_one_pixel_is_that_pixel() -> None:
    assert random_crop(Image.new("RGB", (1, 1), "red"), seed="a").getpixel((0, 0)) == (255, 0, 0)


def test_images_are_known_by_what_is_seen_of_them(tmp_path: Path) -> None:
    """Shape, mode, palette and orientation count; where the object, or the file's content, lies does not."""
    wide = Image.new("RGB", (6, 2), "red")
    red, blue = (Image.new("P", (6, 2)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    turned = wide.copy()
    turned.getexif()[0x0112] = 6  # lies on its side
    images = [wide, wide.resize((2, 6)), red, blue, turned, wide.convert("L")]
    seen = [image_identity(image, source="f:1") for image in images]
    assert len(set(seen)) == len(images)
    for image, identity in zip(images, seen, strict=True):
        if image is not turned:  # a copy would have forgotten it
            assert image_identity(image.copy(), source="f:1") == identity
    inside = image_identity(encoded(wide), source="f:1")
    assert inside not in seen
    assert image_identity(bytes(bytearray(encoded(wide))), source="f:1") == inside
    assert image_identity(tmp_path / "not_there.png", source="f:1") == tmp_path / "not_there.png"
