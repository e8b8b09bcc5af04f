"""Writing that never leaves half a file behind, and reading that survives half a line."""

import codecs
import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class JsonLines(NamedTuple):
    """What a file of JSON lines holds."""

    objects: list[dict[str, Any]]
    skipped: int
    """Lines that are no JSON object: half-written when a run was killed, or damaged."""


def write_text(path: Path, text: str) -> None:
    """Write a file whole, or leave what was there untouched; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, or leave what was there untouched.

    Raises:
        OSError: the disk is full or may not be written; an earlier version of the file is as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Write objects, one a line, as a whole file or not at all; numbers that are not finite become null."""
    write_text(path, _lines(objects))


def append_jsonl(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Append objects, one a line; numbers that are not finite become null.

    A half-written last line, left by a run that was killed, is closed first, so that it spoils no good line.
    """
    lines = _lines(objects)
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                lines = "\n" + lines
        file.write(lines.encode("utf-8"))


def read_jsonl(path: Path) -> JsonLines:
    """Every readable object of a file, in order; a missing file holds none."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return JsonLines([], 0)
    lines = [line for line in content.removeprefix(codecs.BOM_UTF8).split(b"\n") if line.strip()]
    objects = [item for item in map(_object, lines) if item is not None]
    return JsonLines(objects, len(lines) - len(objects))


def _lines(objects: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(_finite(item), ensure_ascii=False, allow_nan=False) + "\n" for item in objects)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _finite(value: Any) -> Any:
    """The value with null where a float is infinite or no number, which JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
