"""Checkpoints that can be trusted: the newest whole one is found, a half-written one is removed."""

import errno
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_callback import TrainerState

from cwdpo.errors import UserError

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
"""Written last by the Trainer, so a checkpoint that has it is whole."""

_TORCH_WRITE_FAILED = ("inline_container.cc", "iostream error", "PytorchStreamWriter failed writing")


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint in a Trainer's output directory, or None."""
    return next(iter(whole_checkpoints(directory)), None)


def whole_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a Trainer's output directory, the newest first."""
    return sorted((path for path in _checkpoints(directory) if _is_whole(path)), key=_step, reverse=True)


@contextmanager
def no_partial_checkpoints(directory: Path) -> Iterator[None]:
    """Remove a checkpoint that could not be written to its end, before and after what runs inside.

    Raises:
        UserError: the disk is full; the message names the checkpoint that is still good.
    """
    _remove_partial(directory)
    try:
        yield
    except Exception as error:
        _remove_partial(directory)
        if not _found_no_room(error):
            raise
        good = last_checkpoint(directory)
        kept = f"{good} is whole" if good else "no checkpoint had been written yet"
        raise UserError(
            f"{directory}: no room to save a checkpoint; {kept}. Free some space and run the same command with "
            "--resume."
        ) from error


def _found_no_room(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; Python, safetensors and torch report it in different words."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        getattr(error, "errno", None) in codes
        or any(f"(os error {code})" in str(error) for code in codes)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITE_FAILED))
    )


def _checkpoints(directory: Path) -> list[Path]:
    return [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        TrainerState.load_from_json(str(checkpoint / _STATE))
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return True


def _remove_partial(directory: Path) -> None:
    for path in _checkpoints(directory):
        if not _is_whole(path):
            logger.warning("%s was not written to its end; removing it", path)
            shutil.rmtree(path, ignore_errors=True)
