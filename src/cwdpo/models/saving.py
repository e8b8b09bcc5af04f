"""Write models so that a good one is never lost, and restore weights exactly."""

import errno
import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.errors import UserError
from cwdpo.models.adapters import describe_base, load_adapter_weights, write_base
from cwdpo.models.loading import one_line, refuse_other_weights, reported_by_us
from cwdpo.models.naming import local_directory
from cwdpo.records import LITTER, sync

logger = logging.getLogger(__name__)


def save_checkpoint(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    directory: str | Path,
    *,
    check: Callable[[Path], None] = lambda draft: None,
    weights: Mapping[str, Tensor] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model (or its adapters) and the processor into a directory, whole or not at all.

    They are written beside the target under another name, which is renamed at the end. If anything fails before, such
    as a full disk (a ``UserError``), a checkpoint that was there stays as it was, and what was half written is removed.
    The same happens where ``check``, which is given the files as they will be, raises. One process only.

    Of a model whose weights are divided among processes, ``weights`` are those of all, by name, and ``base`` is what
    :func:`cwdpo.models.adapters.describe_base` said of the model under its adapters before they were divided.
    """
    target = Path(directory).expanduser().resolve()  # a link to a directory stays a link
    with _replacing(target) as draft:
        whole: dict[str, Any] = {} if weights is None else {"state_dict": weights}
        model.save_pretrained(str(draft), **whole)
        if isinstance(model, PeftModel):
            write_base(base or describe_base(model), draft)
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
    if isinstance(model, PeftModel) and (path / model.active_adapter / "adapter_config.json").is_file():
        path = path / model.active_adapter  # where PEFT saves adapters that are not called `default`
    is_adapter = (path / "adapter_config.json").is_file()
    if isinstance(model, PeftModel) != is_adapter:
        has, needs = ("adapters", "a full model") if is_adapter else ("no adapters", "adapters")
        raise UserError(f"{path} has {has}, but the run trains {needs}. Resume with the `lora` setting it began with.")
    if isinstance(model, PeftModel):
        load_adapter_weights(model, path)
    else:
        assert isinstance(model, PreTrainedModel)
        model.load_state_dict(_saved_copy(model, path).state_dict(), strict=True)


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

    Should the process be killed between the two renames, the old checkpoint is in ``.NAME.*/old`` beside the target;
    :func:`remove_litter` puts it back.
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
                sync(path)
            _swap(draft, target, old=Path(holder) / "old")
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
            raise
        advice = "Free some space" if found_no_room(error) else "Check the disk and the directory's permissions"
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
    sync(target.parent)


def remove_litter(root: Path, *, older_than: float = math.inf) -> list[Path]:
    """Remove what writing was killed in the midst of, anywhere in a run directory that no other process writes.

    Args:
        root: the run directory.
        older_than: seconds since the epoch; what was touched later stays, as other ranks may be writing it.

    Returns:
        What was removed. A model that was about to be replaced is put back where nothing took its place.
    """
    removed = []
    for path in sorted(root.rglob("*"), reverse=True):  # what lies in a directory comes before it
        if not LITTER.fullmatch(path.name) or path.is_symlink() or path.stat().st_mtime > older_than:
            continue
        if (path / "old").is_dir():
            target = path.with_name(path.name[1:].rpartition(".")[0])
            if not target.exists():
                (path / "old").rename(target)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


_TORCH_WRITE_FAILED = ("inline_container.cc", "iostream error", "PytorchStreamWriter failed writing")


def found_no_room(error: BaseException) -> bool:
    """Whether a write failed because the disk is full; Python, safetensors and torch report it in different words."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        getattr(error, "errno", None) in codes
        or any(f"(os error {code})" in str(error) for code in codes)
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITE_FAILED))
    )
