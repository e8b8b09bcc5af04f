"""The Trainer's checkpoints: sealed with sizes and hashes once they are on the disk, verified before a run goes on.

A checkpoint is *unfinished* from the moment its saving begins until its manifest is written, whatever files it has by
then. One without either mark was written by another program, and is whole where the Trainer's last file can be read.
"""

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import TrainerState

from cwdpo.errors import UserError
from cwdpo.models.saving import found_no_room
from cwdpo.records import sync, write_json

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_UNFINISHED = "unfinished"
_CHUNK = 2**24


def begin_checkpoint(checkpoint: Path) -> None:
    """Mark a checkpoint as unfinished, before its first file is written."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / _UNFINISHED).touch()
    (checkpoint / MANIFEST).unlink(missing_ok=True)


def seal_checkpoint(checkpoint: Path) -> None:
    """Wait until every file of a checkpoint is on the disk, and write its manifest: from then on it is whole."""
    files = {}
    for path in _files(checkpoint):
        sync(path)
        files[str(path.relative_to(checkpoint))] = {"bytes": path.stat().st_size, "xxh3_128": _hash(path)}
    write_json(checkpoint / MANIFEST, {"files": files})
    (checkpoint / _UNFINISHED).unlink(missing_ok=True)
    sync(checkpoint.parent)


def find_damage(checkpoint: Path, *, thorough: bool) -> str | None:
    """What is wrong with a checkpoint, in words; None for a whole one.

    ``thorough`` reads every byte. Otherwise presence and sizes are compared, which finds what a crash leaves.
    """
    if (checkpoint / MANIFEST).exists():
        return _difference(checkpoint, thorough=thorough)
    if (checkpoint / _UNFINISHED).exists():
        return "it was not written to its end"
    try:
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))  # written last by the Trainer
    except (OSError, ValueError, TypeError, AttributeError):
        return "it was not written to its end"
    return (
        next((f"{path.name} cannot be read" for path in _files(checkpoint) if not _opens(path)), None)
        if thorough
        else None
    )


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint in a Trainer's output directory, or None; looks at sizes alone."""
    return next(iter(whole_checkpoints(directory)), None)


def whole_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a Trainer's output directory, the newest first; looks at sizes alone."""
    return [path for path in reversed(_by_step(directory)) if find_damage(path, thorough=False) is None]


def has_checkpoint(directory: Path) -> bool:
    """Whether any checkpoint was finished here, be it damaged by now."""
    return any((path / MANIFEST).exists() for path in _by_step(directory)) or last_checkpoint(directory) is not None


def verified_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint of which every byte is as it was saved; None where there is no checkpoint.

    Damaged ones that are newer are removed, which a warning says: going on from the older one writes them again. A
    UserError where damaged ones are all that is left. One process only.
    """
    _remove_unfinished(directory)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(_by_step(directory)):
        problem = find_damage(checkpoint, thorough=True)
        if problem is not None:
            damaged.append((checkpoint, problem))
            continue
        for path, why in damaged:
            logger.warning("%s is damaged (%s): it is removed, and %s is taken", path, why, checkpoint)
            remove_checkpoint(path)
        return checkpoint
    if not damaged:
        return None
    path, why = damaged[0]
    raise UserError(
        f"{path} is damaged ({why}), and no whole checkpoint is left beside it. Put its files back; or delete "
        f"{directory} and resume, and the stage begins again."
    )


def rotate_checkpoints(directory: Path, limit: int | None, *, best: str | None) -> None:
    """Keep the ``limit`` newest checkpoints, the newest and the ``best`` in any case; None or 0 keeps all."""
    found = _by_step(directory)
    kept = {path.resolve() for path in [*found[-1:], *([Path(best)] if best else [])]}
    if not limit or limit < 0:
        return
    others = [path for path in found if path.resolve() not in kept]
    for path in others[: max(0, len(found) - max(limit, len(found) - len(others)))]:
        remove_checkpoint(path)


def remove_checkpoint(checkpoint: Path) -> None:
    """Take a checkpoint out of sight at once, then off the disk: a half-removed one is never met."""
    gone = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    checkpoint.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def no_unfinished_checkpoints(directory: Path, *, is_main: bool = True) -> Iterator[None]:
    """Remove half-written checkpoints, before what runs inside and if it fails; a full disk is a UserError."""
    if is_main:
        _remove_unfinished(directory)
    try:
        yield
    except Exception as error:
        if is_main:
            _remove_unfinished(directory)
        if not found_no_room(error):
            raise
        good = last_checkpoint(directory)
        kept = f"{good} is whole" if good else "no checkpoint had been written yet"
        raise UserError(
            f"{directory}: no room to save a checkpoint; {kept}. Free some space and run the same command with "
            "--resume."
        ) from error


def _remove_unfinished(directory: Path) -> None:
    for path in _by_step(directory):
        if not (path / MANIFEST).exists() and find_damage(path, thorough=False) is not None:
            logger.warning("%s was not written to its end; removing it", path)
            remove_checkpoint(path)


def _by_step(directory: Path) -> list[Path]:
    """A Trainer's checkpoints in the order of their steps, whole or not."""
    found = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _files(checkpoint: Path) -> list[Path]:
    """What the manifest speaks of."""
    ours = {checkpoint / MANIFEST, checkpoint / _UNFINISHED}
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path not in ours)


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _difference(checkpoint: Path, *, thorough: bool) -> str | None:
    """The first difference between a checkpoint and its manifest."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text("utf-8"))["files"]
        for name, said in files.items():
            path, size = checkpoint / name, int(said["bytes"])
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, and had {size}"
            if thorough and _hash(path) != said["xxh3_128"]:
                return f"the content of {name} has changed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read: {type(error).__name__}"
    return None


def _opens(path: Path) -> bool:
    """Whether a file of tensors is whole, as far as its format has checksums; other files are taken as they are."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        if path.suffix in (".pt", ".pth", ".bin"):
            with path.open("rb") as file:
                start = file.read(2)
            if start != b"PK":  # of older programs, in a format without checksums
                return bool(start)
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
    except (OSError, SafetensorError, zipfile.BadZipFile, EOFError):
        return False
    return True
