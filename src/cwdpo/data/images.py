"""Images: open them as RGB, or say what is wrong.

Limits, each an error and never a guess: a file may have at most :data:`MAX_FILE_BYTES` bytes, a side at most
:data:`MAX_SIDE` pixels, and an image at most ``PIL.Image.MAX_IMAGE_PIXELS`` (Pillow only warns between one and two
times that number). What is changed on opening: the EXIF orientation is applied, transparency is laid on white, 16-bit
grey is scaled to 8 bits, CMYK and other colour spaces become RGB, and of an animation the first frame is taken.
Texts and colour profiles in a PNG file do not matter, however long they are.
"""

import io
import os
import random
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cwdpo.data.rows import ImageSource, StoredImage
from cwdpo.errors import DataError, path_advice, shortened

MAX_FILE_BYTES = 256 * 2**20
"""Largest image file that is opened, in bytes. Encoded photographs are a hundred times smaller."""

MAX_SIDE = 32_768
"""Most pixels of a side: an image of one row and millions of columns has few pixels, but no use."""

_SHRINK = "Make the image smaller: no model here looks at so many pixels."
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def open_image(image: ImageSource, *, source: str) -> Image.Image:
    """Decode an image to RGB, fully and upright, so that nothing can fail later; else a ``DataError``."""
    name = _name(image)
    with _errors_of(name, source):
        if isinstance(image, StoredImage):
            image = image.read()
        if isinstance(image, Image.Image):
            _check_size(image, name, source)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), name, source)
        return _to_rgb(ImageOps.exif_transpose(_decode_file(image, name, source)), name, source)


def peek_image(image: ImageSource, *, source: str) -> tuple[int, int]:
    """Width and height from an image's header, without decoding it: a hundred times faster than :func:`open_image`.

    What is damaged or cut short behind the header is not noticed; all else is a ``DataError`` as there.
    """
    name = _name(image)
    with _errors_of(name, source):
        if isinstance(image, StoredImage):
            image = image.read()
        if isinstance(image, Image.Image):
            _check_size(image, name, source)
            return image.size
        if isinstance(image, bytes):
            _check_bytes(len(image), name, source)
            return _peek(io.BytesIO(image), name, source)
        with _opened_file(image, name, source) as file:
            return _peek(file, name, source)


def image_identity(image: ImageSource, *, source: str) -> Path | str:
    """Equal for images of equal content: encoded bytes, and decoded pixels with what says how they are shown, are known
    by their hash; a file by its path, unread."""
    if isinstance(image, Path):
        return image
    if isinstance(image, Image.Image):
        name = _name(image)
        with _errors_of(name, source):
            _check_size(image, name, source)
            # as they lie: to turn and convert them first, as for a model, takes ten times as long
            pixels = np.ascontiguousarray(np.asarray(image)).data
            shown = image.getpalette(), image.info.get("transparency"), image.getexif().get(ExifTags.Base.Orientation)
        return f"{image.mode} {image.size} {shown} {xxhash.xxh3_128_hexdigest(pixels)}"
    return xxhash.xxh3_128_hexdigest(image if isinstance(image, bytes) else image.read())


def verify_image(image: ImageSource, *, source: str) -> None:
    """Find out whether :func:`open_image` will succeed, in a third of its time for a JPEG file: such are decoded whole,
    but at a smaller size."""
    if not isinstance(image, Path | bytes):
        open_image(image, source=source)
        return
    name = _name(image)
    with _errors_of(name, source):
        opened = _decode_file(image, name, source, small=True)
        _check_depth(opened, name, source)


def random_crop(image: Image.Image, *, seed: str) -> Image.Image:
    """A region of 1 to 20 % of an image's area, of the image's own shape, enlarged to its size; the seed decides which.

    mDPO (arXiv 2406.11839) takes such crops as images that show too little for the answer.
    """
    rng = random.Random(seed)
    side = rng.uniform(0.01, 0.2) ** 0.5
    width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    region = image.crop((left, top, left + width, top + height))
    return region.resize(image.size, Image.Resampling.BICUBIC)


def _name(image: ImageSource) -> str:
    """What messages call an image; the directory's name may be long, but a part of the path may not."""
    if not isinstance(image, Path):
        return "the image"
    return f"image {shortened('/'.join(shortened(part) for part in str(image).split('/')), 240)}"


@contextmanager
def _errors_of(name: str, source: str) -> Iterator[None]:
    """Pillow's errors, with the image that they are about and what to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except DataError:
            raise
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as problem:
            found = re.search(r"\d+", str(problem))  # its limit is twice ours in one of the two
            pixels = "" if found is None else f"{int(found[0]):,} pixels, "
            bound = f"more than the {Image.MAX_IMAGE_PIXELS:,} allowed"
            raise DataError(f"{source}: {name} is too large: {pixels}{bound}. {_SHRINK}") from problem
        except UnidentifiedImageError as problem:
            raise DataError(
                f"{source}: {name} is not an image that Pillow can read. Convert it to PNG, or leave it out."
            ) from problem
        except Exception as problem:  # Pillow's decoders raise many types on damaged files; all mean the same here
            said = shortened(f"{type(problem).__name__}: {' '.join(str(problem).split())}", 160)
            raise DataError(
                f"{source}: {name} cannot be decoded ({said}). Copy the file again if it is damaged or cut short, "
                "convert it, or leave it out."
            ) from problem


@contextmanager
def _opened_file(path: Path, name: str, source: str) -> Iterator[BinaryIO]:
    """An image's file, opened once: what is checked (a plain file, not empty, not too large) is what is read."""
    try:
        # without O_NONBLOCK, opening a pipe would wait forever
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{source}: {name} is not a file. Write the path of an image file.")
            _check_bytes(status.st_size, name, source)
            yield file
    except IsADirectoryError as problem:
        raise DataError(f"{source}: {name} is not a file. Write the path of an image file.") from problem
    except FileNotFoundError as problem:
        raise DataError(f"{source}: {name} does not exist. {_where_else(path)}") from problem
    except OSError as problem:  # no right to look, a name longer than the file system allows, a disk that fails
        if problem.strerror is None:  # of the decoder, not of the file system
            raise
        raise DataError(f"{source}: {name} cannot be read: {problem.strerror}. Correct the path.") from problem


ROOT = "--image-root (recipe: data.image_root; Python: image_root)"
"""The setting that says where relative paths start, in messages."""


def _where_else(path: Path) -> str:
    """What to write where there is no image: the root from which it would be found, or a name that is like it."""
    for root in path.parents[1:6]:
        if (root.parent / path.relative_to(root)).is_file():
            return f"It would be found from {root.parent}: give that as {ROOT}."
    near = path_advice(path, otherwise="")
    if "Did you mean" in near or (near and not near.startswith("There is no directory")):
        return shortened(near, 400)
    return f"Correct the path, or give the directory that it starts at: {ROOT}."


def _check_bytes(size: int, name: str, source: str) -> None:
    if size == 0:
        raise DataError(f"{source}: {name} is empty (0 bytes). Copy the file again, or leave it out.")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{source}: {name} has {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed. {_SHRINK}")


def _decode_file(image: Path | bytes, name: str, source: str, *, small: bool = False) -> Image.Image:
    if isinstance(image, bytes):
        _check_bytes(len(image), name, source)
        encoded = image
    else:
        with _opened_file(image, name, source) as file:
            encoded = file.read(MAX_FILE_BYTES)
    try:
        return _decode(encoded, name, source, small)
    except ValueError as problem:
        if not _is_about_texts(encoded, problem):
            raise
        return _decode(_without_texts(encoded), name, source, small)


def _decode(encoded: bytes, name: str, source: str, small: bool) -> Image.Image:
    opened = Image.open(io.BytesIO(encoded))
    _check_size(opened, name, source)
    if small:
        opened.draft(None, (1, 1))  # the decoder's smallest, an eighth; formats that have no such thing do nothing
    opened.load()
    return opened


def _peek(file: BinaryIO, name: str, source: str) -> tuple[int, int]:
    try:
        with Image.open(file) as opened:
            _check_size(opened, name, source)
            return opened.size
    except ValueError as problem:
        file.seek(0)
        encoded = file.read(MAX_FILE_BYTES)
        if not _is_about_texts(encoded, problem):
            raise
        with Image.open(io.BytesIO(_without_texts(encoded))) as opened:
            _check_size(opened, name, source)
            return opened.size


def _is_about_texts(encoded: bytes, problem: ValueError) -> bool:
    """Whether Pillow refuses a PNG file for the size of its texts or its colour profile alone."""
    return encoded.startswith(_PNG) and ("MAX_TEXT" in str(problem) or "text chunks" in str(problem))


def _without_texts(encoded: bytes) -> bytes:
    """A PNG file without its texts and its colour profile, neither of which is used; its EXIF data stays."""
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(encoded):  # length, type and checksum of a chunk have four bytes each
        end = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        if encoded[at + 4 : at + 8] not in _PNG_TEXTS:
            kept.append(encoded[at:end])
        at = end
    return b"".join(kept)


def _check_size(image: Image.Image, name: str, source: str) -> None:
    """Images that were opened elsewhere have not met Pillow's own limit under our rules."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        bound = f"{limit:,} allowed"
    elif max(image.size) > MAX_SIDE:
        bound = f"{MAX_SIDE:,} allowed on a side"
    else:
        return
    raise DataError(
        f"{source}: {name} is too large: {image.width} x {image.height} pixels, more than the {bound}. {_SHRINK}"
    )


def _check_depth(image: Image.Image, name: str, source: str) -> None:
    if image.mode in ("I", "F"):
        raise DataError(
            f"{source}: {name} has 32 bits a pixel (mode {image.mode}), and their range is not known. "
            "Save it with 8 bits a channel."
        )


def _to_rgb(image: Image.Image, name: str, source: str) -> Image.Image:
    """Convert from any mode; transparency is laid on white, as on a page."""
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    _check_depth(image, name, source)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")
