"""Write checkpoints so that a good one is never lost, find whole ones, and restore weights exactly."""

import errno
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_callback import TrainerState

from cwdpo.errors import UserError
from cwdpo.models.adapters import load_adapter_weights, write_base
from cwdpo.models.loading import local_directory, one_line, refuse_other_weights, reported_by_us

logger = logging.getLogger(__name__)


def save_checkpoint(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    directory: str | Path,
    *,
    check: Callable[[Path], None] = lambda draft: None,
) -> Path:
    """Write the model (or its adapters) and the processor into a directory, whole or not at all.

    They are written beside the target under another name, which is renamed at the end. If anything fails before, such
    as a full disk (a ``UserError``), a checkpoint that was there stays as it was, and what was half written is removed.
    The same happens where ``check``, which is given the files as they will be, raises. One process only.
    """
    target = Path(directory).expanduser().resolve()  # a link to a directory stays a link
    with _replacing(target) as draft:
        model.save_pretrained(str(draft))
        if isinstance(model, PeftModel):
            write_base(model, draft)
        processor.save_pretrained(str(draft))
        check(draft)
    return target


def restore_weights(model: nn.Module, directory: str | Path) -> None:
    """Put a checkpoint's weights into an existing model, in place, all of them or an error.

    ``Trainer`` reloads with ``load_state_dict(strict=False)``, but ``save_pretrained`` writes some classes (Qwen2-VL,
    Qwen2.5-VL, LLaVA) under older weight names, which are then silently passed over (transformers#43701). Here the
    class itself reads its files. Needs the memory of a second copy on the CPU. Not for sharded (FSDP, ZeRO-3) models.
    Of a model with adapters only the active adapter is restored.
    """
    path = local_directory(Path(directory))
    assert path is not None
    is_adapter = (path / "adapter_config.json").is_file()
    if isinstance(model, PeftModel) != is_adapter:
        has, needs = ("adapters", "a full model") if is_adapter else ("no adapters", "adapters")
        raise UserError(f"{path} has {has}, but the run trains {needs}. Resume with the `lora` setting it began with.")
    if isinstance(model, PeftModel):
        load_adapter_weights(model, path)
    else:
        assert isinstance(model, PreTrainedModel)
        model.load_state_dict(_saved_copy(model, path).state_dict(), strict=True)


def last_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint in a Trainer's output directory, or None."""
    return next(iter(whole_checkpoints(directory)), None)


def whole_checkpoints(directory: Path) -> list[Path]:
    """The whole checkpoints in a Trainer's output directory, the newest first."""
    return [path for path in reversed(_by_step(directory)) if _is_whole(path)]


@contextmanager
def no_partial_checkpoints(directory: Path) -> Iterator[None]:
    """Remove half-written checkpoints, before what runs inside and if it fails; a full disk is a UserError."""
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


def _saved_copy(model: PreTrainedModel, path: Path) -> nn.Module:
    """The saved model through its class's own reading of weight names, in a dtype that rounds nothing."""
    widest = reduce(torch.promote_types, (weight.dtype for weight in model.parameters() if weight.is_floating_point()))
    try:
        with reported_by_us():
            loaded: Any = type(model).from_pretrained(
                path, config=model.config, dtype=widest, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the weights in {path} cannot be read: {one_line(error)}") from error
    saved: nn.Module
    saved, report = loaded
    refuse_other_weights(
        path,
        "weights",
        "It was saved by another model; resume from a checkpoint of this one.",
        missing=report["missing_keys"],
        unexpected=report["unexpected_keys"],
        reshaped={name for name, *_ in report["mismatched_keys"]},
    )
    return saved


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """An empty directory beside the target that takes the target's place when the block ends well.

    Should the process be killed between the two renames, the old checkpoint is in ``.NAME.*/old`` beside the target.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True
        ) as holder:
            draft = Path(holder) / "new"
            draft.mkdir()
            yield draft
            # wait until the files are on the disk; some file systems report only now that they are full
            for path in draft.rglob("*"):
                if path.is_file():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
            _swap(draft, target, old=Path(holder) / "old")
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
            raise
        advice = "Free some space" if _found_no_room(error) else "Check the disk and the directory's permissions"
        kept = " The checkpoint that was there is untouched." if target.exists() else ""
        raise UserError(f"{target} could not be written: {one_line(error)}.{kept} {advice} and save again.") from error


def _swap(draft: Path, target: Path, *, old: Path) -> None:
    """Put the draft in the target's place; the target comes back if that fails."""
    if target.exists():
        target.rename(old)
    try:
        draft.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise


_TORCH_WRITE_FAILED = ("inline_container.cc", "iostream error", "PytorchStreamWriter failed writing")


def _found_no_room(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; Python, safetensors and torch report it in different words."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        getattr(error, "errno", None) in codes
        or any(f"(os error {code})" in str(error) for code in codes)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITE_FAILED))
    )


def _by_step(directory: Path) -> list[Path]:
    """A Trainer's checkpoints in the order of their steps, whole or not."""
    found = [path for path in directory.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _is_whole(checkpoint: Path) -> bool:
    try:
        TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))  # written last by the Trainer
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    return True


def _remove_partial(directory: Path) -> None:
    for path in _by_step(directory):
        if not _is_whole(path):
            logger.warning("%s was not written to its end; removing it", path)
            shutil.rmtree(path, ignore_errors=True)
