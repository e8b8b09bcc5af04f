"""Write checkpoints so that a good one is never lost, merge adapters, and put saved weights back exactly."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from cwdpo.errors import UserError
from cwdpo.models.adapters import load_adapter, load_adapter_weights
from cwdpo.models.loading import load_policy
from cwdpo.models.processors import load_processor
from cwdpo.models.sources import local_directory, one_line, some


def save_checkpoint(model: PreTrainedModel | PeftModel, processor: ProcessorMixin, directory: str | Path) -> Path:
    """Write the model (or its adapters) and the processor into a directory, whole or not at all.

    They are written beside the target under another name, which is renamed at the end. If anything fails before, a
    checkpoint that was there stays as it was, and what was half written is removed. One process only.

    Returns:
        The directory.

    Raises:
        UserError: the disk is full or may not be written.
    """
    target = Path(directory)
    with _replacing(target) as draft:
        model.save_pretrained(str(draft))
        processor.save_pretrained(str(draft))
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """An empty directory beside the target that takes the target's place when the block ends well."""
    draft: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        draft.chmod(0o755)  # mkdtemp's 0o700 would hide the checkpoint from everyone else
        yield draft
        _swap(draft, target)
    except Exception as error:
        if not isinstance(error, OSError | SafetensorError) and "os error" not in str(error):
            raise
        full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
        advice = "Free some space" if full else "Check the disk and the directory's permissions"
        kept = "The checkpoint that was there is untouched. " if target.exists() else ""
        raise UserError(
            f"{target} could not be written: {one_line(error)}. {kept}{advice}, then save again."
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, target: Path) -> None:
    """Put the draft in the target's place; the old one comes back if that fails."""
    if not target.exists():
        draft.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    target.rename(old)  # an empty directory may be renamed over
    try:
        draft.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def merge_adapter(
    checkpoint_dir: str | Path,
    out_dir: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Path:
    """Merge adapters into their base model and write a plain checkpoint with the same logits.

    Args:
        checkpoint_dir: holds the adapters, and a processor if it was trained here.
        out_dir: must not exist or be empty.
        base: the base model; by default the one that the adapters name.
        dtype: of the merged weights. In 16 bits the merge rounds each weight once.
        trust_remote_code: run Python code that comes with the base model.

    Returns:
        ``out_dir``.

    Raises:
        UserError: ``out_dir`` has files, there are no adapters, or the base model is not to be found.
    """
    source, target = Path(checkpoint_dir), Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; nothing is overwritten. Name a new directory.")
    if not (source / "adapter_config.json").is_file():
        raise UserError(
            f"{source} has no adapter_config.json, so there is nothing to merge. Name the directory that holds the "
            "adapters; a full checkpoint can be used as it is."
        )
    base = base or PeftConfig.from_pretrained(str(source)).base_model_name_or_path
    if not base:
        raise UserError(f"the adapters in {source} do not name their base model. Give it: `--base MODEL`.")
    model = load_policy(base, dtype=dtype, freeze_vision=False, trust_remote_code=trust_remote_code)
    adapted: Any = load_adapter(model, source, trainable=False)
    # transformers and PEFT write the tokenizer and the processor with the adapters, if they are given them
    own_processor = any((source / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    processor = load_processor(source if own_processor else base, trust_remote_code=trust_remote_code)
    return save_checkpoint(adapted.merge_and_unload(), processor, target)


def restore_weights(model: nn.Module, directory: str | Path) -> None:
    """Put a checkpoint's weights into an existing model, in place, all of them or an error.

    ``Trainer`` reloads with ``load_state_dict(strict=False)``, but ``save_pretrained`` writes some classes (Qwen2-VL,
    Qwen2.5-VL, LLaVA) under older weight names, which are then silently passed over (transformers#43701). Here the
    class itself reads its files. Needs the memory of a second copy on the CPU. Not for sharded (FSDP, ZeRO-3) models.

    Args:
        model: bare, or with adapters; then only the active adapter is restored.
        directory: what ``save_pretrained`` of such a model wrote.

    Raises:
        UserError: the files lack weights, have others, or have other shapes.
    """
    path = local_directory(Path(directory))
    assert path is not None
    is_adapter = (path / "adapter_config.json").is_file()
    if isinstance(model, PeftModel) != is_adapter:
        has, needs = ("adapters", "a full model") if is_adapter else ("no adapters", "adapters")
        raise UserError(f"{path} has {has}, but the run trains {needs}. Resume with the `lora` setting it began with.")
    if isinstance(model, PeftModel):
        load_adapter_weights(model, path)
        return
    fresh = _fresh_copy(model, path)
    model.load_state_dict(fresh.state_dict(), strict=True)


def _fresh_copy(model: Any, path: Path) -> nn.Module:
    """The saved model through its class's own reading of weight names, in a dtype that rounds nothing."""
    floating = [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
    widest = reduce(torch.promote_types, floating)
    try:
        fresh, report = type(model).from_pretrained(
            path, config=model.config, dtype=widest, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the weights in {path} cannot be read: {one_line(error)}") from error
    problems = (
        ("lacks", report["missing_keys"]),
        ("has, beyond the model's,", report["unexpected_keys"]),
        ("has another shape for", {name for name, *_ in report["mismatched_keys"]}),
    )
    for what, names in problems:
        if names:
            raise UserError(
                f"{path} {what} {len(names)} weights: {some(names)}. It was saved by another model; resume from a "
                "checkpoint of this one."
            )
    return fresh  # type: ignore[no-any-return]  # the class is known only at run time
