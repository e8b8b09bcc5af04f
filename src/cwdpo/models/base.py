"""Which base model adapters were trained on: written beside them, and compared when they are put on one again."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from cwdpo.errors import UserError
from cwdpo.models.fingerprint import base_fingerprint

FILE = "cwdpo_base.json"
"""Beside ``adapter_config.json``."""


def write_base(model: PeftModel, directory: Path) -> None:
    """Say beside saved adapters which model they belong to."""
    (directory / FILE).write_text(json.dumps(_describe(model)) + "\n", encoding="utf-8")


def says_its_base(directory: Path) -> bool:
    """Whether adapters come with what :func:`check_base` compares; others than ours do not."""
    return bool(_read(directory))


def check_base(model: nn.Module, directory: Path) -> None:
    """Compare a model with the one that saved adapters were trained on.

    Raises:
        UserError: it is another; two models of one class differ in their weights.
    """
    trained_on = _read(directory)
    if not trained_on:
        return
    here = _describe(model, through=trained_on.get("dtype"))
    kind, its_kind = trained_on.get("model_type"), here["model_type"]
    marks = trained_on.get("fingerprint"), here["fingerprint"]
    if kind == its_kind and (None in marks or marks[0] == marks[1]):
        return
    other = f"a {its_kind} model" if kind != its_kind else f"another {its_kind} model, with other weights"
    raise UserError(
        f"the adapters in {directory} were trained on {trained_on.get('name') or f'a {kind} model'}"
        f"{f' ({kind})' if kind != its_kind else ''}, and this base is {other}. Name the base that they were trained "
        "on. If you mean another one (a base that was quantised for training, say), `cwdpo merge --any-base` takes it."
    )


def _describe(model: Any, *, through: str | None = None) -> dict[str, Any]:
    config = model.config
    dtype = str(model.dtype).removeprefix("torch.")
    rounded = getattr(torch, through, None) if through is not None else None
    return {
        "name": config.name_or_path or None,
        "model_type": config.model_type,
        "dtype": dtype,
        "fingerprint": base_fingerprint(model, through=rounded),
    }


def _read(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
