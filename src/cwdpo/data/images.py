"""Images: find them inside their root, and open them as RGB or say what is wrong.

Limits, each an error and never a guess: a file may have at most :data:`MAX_FILE_BYTES` bytes, and an image at most
``PIL.Image.MAX_IMAGE_PIXELS`` pixels (Pillow only warns between one and two times that number). What is changed on
opening: the EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, CMYK and other
colour spaces become RGB, and of an animation the first frame is taken.
"""

import io
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from cwdpo.data.rows import ImageSource
from cwdpo.errors import DataError

MAX_FILE_BYTES = 256 * 2**20
"""Largest image file that is opened, in bytes. Encoded photographs are a hundred times smaller."""

_URL = re.compile(r"^(data:|file:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_SHRINK = "Make the image smaller: no model here looks at so many pixels."


def resolve_image(name: str, root: Path | None, *, source: str) -> Path:
    """Where an image named in a row lies on disk; whether it can be read is found out by :func:`open_image`.

    Images may not leave the ``root``, be it by ``..``, as an absolute path or by a link. None is for rows that a
    program holds in memory: it takes absolute paths as they are, and refuses relative ones.
    """
    shown = repr(name if len(name) <= 120 else f"{name[:100]}...")  # a `data:` URL may be megabytes long
    if not name.strip() or "\0" in name:
        raise DataError(
            f"{source}: the image path is {name!r}. Write the path of an image file, or leave `images` out."
        )
    if _URL.match(name):
        raise DataError(
            f"{source}: image {shown} is a URL, and nothing is downloaded while training. "
            "Save the image as a file beside the data and write its path."
        )
    if root is None:
        if Path(name).is_absolute():
            return Path(name)
        raise DataError(
            f"{source}: image {shown} is a relative path, but these rows come from memory and have no "
            "directory to start from. Pass image_root=, or load the data with cwdpo.data.reading.read_rows."
        )
    base = root.resolve()
    try:
        found = (base / name).resolve()
    except (OSError, RuntimeError) as problem:  # a loop of links
        raise DataError(f"{source}: image path {shown} cannot be followed: {problem}") from problem
    if not found.is_relative_to(base):
        if Path(name).is_absolute():
            how = f"is an absolute path outside the image root {base}"
        elif ".." in Path(name).parts:
            how = f"leaves the image root {base} through `..`"
        else:
            how = f"is, or lies behind, a link that leads out of the image root {base}, to {found}"
        raise DataError(
            f"{source}: image {shown} {how}. Images must stay inside it: move the files there, or give a root that "
            "holds them with --image-root."
        )
    return found


def open_image(image: ImageSource, *, source: str) -> Image.Image:
    """Decode an image to RGB, fully and upright, so that nothing can fail later; else a ``DataError``."""
    name = _name(image)
    with _errors_of(name, source):
        if isinstance(image, Image.Image):
            opened = image
        else:
            _check_bytes(image, name, source)
            try:
                encoded = image if isinstance(image, bytes) else image.read_bytes()
            except OSError as problem:
                raise DataError(f"{source}: {name} cannot be read: {problem.strerror}. Copy it again.") from problem
            opened = Image.open(io.BytesIO(encoded))
        _check_size(opened, name, source)
        opened.load()
        return _to_rgb(ImageOps.exif_transpose(opened), name, source)


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


def peek_image(image: ImageSource, *, source: str) -> None:
    """Look at an image's file and its header, without decoding it: a hundred times faster than :func:`open_image`.

    What is damaged or cut short behind the header is not noticed; all else is a ``DataError`` as there.
    """
    name = _name(image)
    with _errors_of(name, source):
        if isinstance(image, Image.Image):
            _check_size(image, name, source)
            return
        _check_bytes(image, name, source)
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as opened:
            _check_size(opened, name, source)


def _name(image: ImageSource) -> str:
    return f"image {image}" if isinstance(image, Path) else "the image"


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
            raise DataError(f"{source}: {name} is too large: {problem}. {_SHRINK}") from problem
        except UnidentifiedImageError as problem:
            raise DataError(
                f"{source}: {name} is not an image that Pillow can read. Convert it to PNG, or take the row out."
            ) from problem
        except Exception as problem:  # Pillow's decoders raise many types on damaged files; all mean the same here
            raise DataError(
                f"{source}: {name} is damaged or cut short ({problem}). Copy the file again, or take the row out."
            ) from problem


def _check_bytes(image: Path | bytes, name: str, source: str) -> None:
    """Refuse a file that is not there, not a plain one (reading a pipe would wait forever), empty or too large."""
    try:
        if isinstance(image, bytes):
            size = len(image)
        elif not image.exists():
            raise DataError(f"{source}: {name} does not exist. Correct the path, or give --image-root.")
        elif not image.is_file():
            raise DataError(f"{source}: {name} is not a file. Write the path of an image file.")
        else:
            size = image.stat().st_size
    except OSError as problem:  # no right to look, or a name longer than the file system allows
        raise DataError(f"{source}: {name} cannot be read: {problem.strerror}. Correct the path.") from problem
    if size == 0:
        raise DataError(f"{source}: {name} is empty (0 bytes). Copy the file again, or take the row out.")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{source}: {name} has {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed. {_SHRINK}")


def _check_size(image: Image.Image, name: str, source: str) -> None:
    """Images that were opened elsewhere have not met Pillow's own limit under our rules."""
    pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise DataError(
            f"{source}: {name} is too large: {image.width} x {image.height} pixels, more than the {limit:,} allowed. "
            f"{_SHRINK}"
        )


def _to_rgb(image: Image.Image, name: str, source: str) -> Image.Image:
    """Convert from any mode; transparency is laid on white, as on a page."""
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    if image.mode in ("I", "F"):
        raise DataError(
            f"{source}: {name} has 32 bits a pixel (mode {image.mode}), and their range is not known. "
            "Save it with 8 bits a channel."
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")
