"""Images as rows hold them: where names start, what may be read, and images that stand in the row itself as text.

Where names start (the first root, else the next that has the file) and what may be read (all roots) are two things: a
link in the data's directory may lead into a second root, and an absolute path may begin there. In a snapshot of the
Hugging Face hub's cache, whose files are links, the ``blobs`` of the same repository may be read too.
"""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

from PIL import Image

from cwdpo.data.images import MAX_FILE_BYTES, ROOT
from cwdpo.data.messages import is_object
from cwdpo.data.rows import ImageSource, StoredImage
from cwdpo.errors import DataError, path_advice, shortened

GivenRoots: TypeAlias = str | Path | Sequence[str | Path] | None
"""Image roots as a user gives them: one directory, several in a list, or several in one text as in ``PATH``."""

_KEPT_NAMES = 100_000
"""Most names that are remembered with their files; more would cost memory that the rows need."""

_URL = re.compile(r"^(data:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_DATA_URL = re.compile(r"^data:[^,]{0,200},", re.IGNORECASE)
_FILE_URL = re.compile(r"^file://(localhost)?(?=/)", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
_SIGNATURES = {
    "iVBORw0KGgo": "PNG",
    "/9j/": "JPEG",
    "_9j_": "JPEG",
    "R0lGOD": "GIF",
    "UklGR": "WebP",
    "SUkqA": "TIFF",
    "TU0AK": "TIFF",
    "Qk": "BMP",
}
"""How base64 text of an image file begins, by format."""

_SHORTEST = 64  # characters of base64 that any image file has

_OF_IMAGE = ("bytes", "base64", "data", "path", "url", "image", "image_url", "file", "source")
"""Keys under which an object holds an image, the first that is there counts; as ``datasets`` and chat formats write."""


class ImageRoots:
    """Finds the files of images that rows name. Every distinct directory and name is looked up once."""

    def __init__(self, start: str | Path | None, *further: str | Path, anywhere: bool = False) -> None:
        """``start`` is where relative names start, None refuses those; a file that is not there is looked for in the
        ``further`` roots, in their order. Files in all roots may be read; ``anywhere`` is for rows that a program holds
        in memory, whose paths it could open itself: ``start`` is its working directory, and any file may be read."""
        self.start = None if start is None else Path(os.path.realpath(start))
        self._anywhere = anywhere
        self._roots = [] if self.start is None else [str(self.start), *map(os.path.realpath, further)]
        self._readable = [*self._roots, *(blobs for root in self._roots if (blobs := _own_blobs(root)) is not None)]
        self._directories: dict[str, str] = {}
        self._found: dict[str, Path] = {}

    def find(self, name: str, *, source: str) -> Path:
        """The file that a name stands for, with all links followed; a ``DataError`` where it may not be read.

        Whether there is such a file, and what it holds, is found out by :func:`cwdpo.data.images.open_image`.
        """
        found = self._found.get(name)
        if found is None:
            found = self._resolve(name, source)
            if len(self._found) < _KEPT_NAMES:
                self._found[name] = found
        return found

    def known(self, names: Sequence[object]) -> tuple[Path, ...] | None:
        """What :meth:`find` gave for each of the names; None where one is no name or is not remembered."""
        found = [self._found.get(name) if isinstance(name, str) else None for name in names]
        return tuple(found) if all(found) else None  # type: ignore[arg-type]  # paths alone, then

    def _resolve(self, name: str, source: str) -> Path:
        shown = shortened(name)
        if not name.strip() or "\0" in name:
            raise DataError(
                f"{source}: the image path is {shown!r}. Write the path of an image file, or leave `images` out."
            )
        path = unquote(_FILE_URL.sub("", name)) if _FILE_URL.match(name) else name
        if _URL.match(path):
            raise DataError(
                f"{source}: image {shown!r} is a URL, and nothing is downloaded while training. "
                "Save the image as a file beside the data and write its path."
            )
        named = path
        if not os.path.isabs(path):
            if self.start is None:
                raise DataError(
                    f"{source}: image {shown!r} is a relative path, but a data set of the hub has no directory to "
                    f"start from. Give one with {ROOT}."
                )
            path = self._join(path)
        if self._anywhere:
            # said here, as who opens the file does not know of the working directory
            if not os.path.exists(path):
                start = "" if os.path.isabs(named) else f" Relative paths start at the working directory, {self.start}."
                advice = path_advice(path, otherwise="Correct the path.")
                raise DataError(f"{source}: image {shown!r} does not exist. {shortened(advice, 400)}{start}")
            return Path(path)
        found = self._follow(path)
        if not any(_inside(found, root) for root in self._readable):
            raise DataError(f"{source}: image {shown!r} {self._why_refused(named, path, found)}")
        return Path(found)

    def _join(self, name: str) -> str:
        """Where a relative name leads from the first root, or from the next one in which there is such a file."""
        first, *further = (os.path.join(root, name) for root in self._roots)
        if not further or os.path.lexists(first):
            return first
        return next((path for path in further if os.path.lexists(path)), first)

    def _follow(self, path: str) -> str:
        """The real path; the links of a directory are followed once for all its files."""
        parent, base = os.path.split(path)
        if base in ("", ".", ".."):
            return os.path.realpath(path)
        if parent not in self._directories:
            self._directories[parent] = os.path.realpath(parent)
        found = os.path.join(self._directories[parent], base)
        return os.path.realpath(found) if os.path.islink(found) else found

    def _why_refused(self, named: str, path: str, found: str) -> str:
        """Of a path as the row gives it, made absolute, and with its links followed."""
        start, target = self.start, os.path.dirname(found)
        if start is None:
            return f"is an absolute path, but no directory may be read. Name it: --image-root {target}."
        if not _inside(os.path.normpath(path), str(start)):
            outside = f"is an absolute path outside the image root {start}"
            how = outside if os.path.isabs(named) else f"leaves the image root {start} through `..`"
        else:
            how = f"is, or lies behind, a link that leads out of the image root {start}, to {shortened(found, 200)}"
        both = f"{start}{os.pathsep}{target}"
        return (
            f"{how}. Only files inside the image roots are read. To read files there too, name both directories: "
            f"--image-root {both} (in a recipe, data.image_root: [{start}, {target}])."
        )


def parse_roots(image_root: str | Path | Sequence[str | Path]) -> ImageRoots:
    """Image roots from what a user gives: a directory, several as a list, or several in one text as in ``PATH``.

    The first is where relative names start, and a file that is not there is looked for in the others. A ``DataError``
    names one that is not a directory.
    """
    given = [image_root] if isinstance(image_root, str | Path) else list(image_root)
    roots: list[str | Path] = []
    for root in given:
        roots += [root] if Path(root).is_dir() else [part for part in str(root).split(os.pathsep) if part]
    for root in roots:
        if not Path(root).is_dir():
            plain = "Write the directory that holds the images."
            advice = plain if Path(root).exists() else path_advice(root, otherwise=plain)
            raise DataError(f"the image root {root} is not a directory. {advice}")
    if not roots:
        raise DataError("the image root is empty. Write the directory that holds the images.")
    return ImageRoots(*roots)


def read_image(value: Any, roots: ImageRoots, *, source: str, where: str) -> ImageSource:
    """An image as a row holds it: a path, a ``file:`` or ``data:`` URL, base64 text, encoded bytes, an object with one
    of these (``datasets``' record of an Image, a part of a message), or an image that is already decoded.

    ``where`` is its place for messages: ``"`images`[0]"``.
    """
    for _ in range(4):  # {"type": "image_url", "image_url": {"url": ...}} is two deep
        if not is_object(value):
            break
        held = [value[key] for key in _OF_IMAGE if value.get(key) is not None]
        if not held:
            raise DataError(f"{source}: {where} names no image: it has no path and no bytes. Write a path.")
        in_base64 = any(value.get(key) is not None for key in ("bytes", "base64", "data"))
        value = held[0]
        if in_base64 and isinstance(value, str):
            return _decode(value, source=source, where=where)
    if isinstance(value, Image.Image | StoredImage):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if _DATA_URL.match(value) or _is_base64(value):
            return _decode(value, source=source, where=where)
        return roots.find(value, source=source)
    raise DataError(
        f"{source}: {where} is of type {type(value).__name__}, but must be a path. "
        'Write "images": ["a.png"], or leave `images` out if the row has none.'
    )


def _is_base64(text: str) -> bool:
    """Whether a text is an image file in base64, and no path: it is long, and begins as image files do."""
    if len(text) < _SHORTEST or not text.startswith(tuple(_SIGNATURES)):
        return False
    return _BASE64.fullmatch(text) is not None


def _decode(text: str, *, source: str, where: str) -> bytes:
    """The bytes of base64 text or of a ``data:`` URL, within the bound that files have."""
    head, comma, body = text.partition(",") if _DATA_URL.match(text) else ("", "", text)
    if len(body) * 3 // 4 > MAX_FILE_BYTES:
        raise DataError(
            f"{source}: {where} has {len(body):,} characters of base64, more than an image of {MAX_FILE_BYTES:,} bytes "
            "needs. Make the image smaller: no model here looks at so many pixels."
        )
    if comma and not head.lower().endswith(";base64"):
        raise DataError(
            f"{source}: {where} is a `data:` URL without base64 ({shortened(head)!r}). Write data:image/png;base64,..."
        )
    packed = "".join(unquote(body).split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        found = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as problem:
        raise DataError(
            f"{source}: {where} is not base64 ({problem}): {shortened(body)!r}. Write the image file's bytes in "
            "base64, or the path of the file."
        ) from problem
    if not found:
        raise DataError(f"{source}: {where} is an empty image. Write the image's bytes, or the path of its file.")
    return found


def _own_blobs(root: str) -> str | None:
    """Of a directory in a snapshot of the hub's cache, where its repository keeps what the snapshot's files link to."""
    for directory in (Path(root), *Path(root).parents):
        if directory.parent.name == "snapshots":
            blobs = directory.parent.parent / "blobs"
            if blobs.is_dir():
                return os.path.realpath(blobs)
    return None


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
