"""The parts of a vision-language model: vision tower, projector, language model; and who of them trains."""

import difflib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from cwdpo.batch import hash_tensors
from cwdpo.errors import UserError


@dataclass(frozen=True)
class PartSize:
    """How many weights one part has, and how many of them train. Tied weights count once."""

    part: str
    """``vision tower``, ``projector``, ``language model`` or ``adapters``."""

    total: int
    trainable: int


def base_model(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model; a bare model as it is."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def vision_tower(model: nn.Module) -> nn.Module | None:
    """The module that encodes images, or None where transformers finds none. For Qwen-VL it holds the merger too."""
    base = base_model(model)
    tower: nn.Module = base.get_encoder(modality="image")
    # transformers returns the model itself where there is no encoder
    return None if tower is base or tower is base.base_model else tower


def language_model(model: nn.Module) -> nn.Module:
    """The decoder with its token embeddings, without the output head."""
    decoder: nn.Module = base_model(model).get_decoder()
    return decoder


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The vision tower's own weights, by their name in it, without those of its projector.

    Qwen-VL keeps its projector inside the tower, as ``merger`` and, for the deep features, ``deepstack_merger_list``.
    """
    tower = vision_tower(model)
    if tower is None:
        return {}
    return {name: weight for name, weight in tower.named_parameters() if "merger" not in name.split(".", 1)[0]}


def freeze_vision_tower(model: nn.Module) -> int:
    """Stop training the vision tower, but not its projector.

    Returns:
        How many weights were frozen, 0 where the model has no vision tower that transformers can find.
    """
    weights = vision_parameters(model).values()
    for weight in weights:
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in weights)


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Count the weights of every part, for the report of what a run trains; the output head goes with the language
    model. Parts without weights are left out."""
    adapter_prefix = getattr(getattr(model, "base_model", None), "prefix", None) or "lora_"
    vision = {id(weight) for weight in vision_parameters(model).values()}
    language = {id(weight) for weight in language_model(model).parameters()}
    head = base_model(model).get_output_embeddings()
    language |= {id(weight) for weight in head.parameters()} if head is not None else set()
    counts = {part: [0, 0] for part in ("vision tower", "projector", "language model", "adapters")}
    for name, weight in model.named_parameters():
        if any(piece.startswith(adapter_prefix) for piece in name.split(".")):
            part = "adapters"
        elif id(weight) in vision:
            part = "vision tower"
        else:
            part = "language model" if id(weight) in language else "projector"
        counts[part][0] += weight.numel()
        counts[part][1] += weight.numel() if weight.requires_grad else 0
    return [PartSize(part, total, trainable) for part, (total, trainable) in counts.items() if total]


def local_directory(name_or_path: str | Path) -> Path | None:
    """The absolute directory that is meant, or None for a hub name.

    Absolute, because adapters write the path of their base model into their files.

    Raises:
        UserError: it reads like a path (or is a ``Path``, or begins with a directory that is here and is no hub model
            that was downloaded before), but there is no such directory.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    text = str(name_or_path)
    looks_local = isinstance(name_or_path, Path) or text.startswith(("/", ".", "~")) or text.count("/") != 1
    if path.exists():
        raise UserError(f"{text} is a file, but a checkpoint is a directory. Name the one with config.json.")
    if not looks_local and _begins_here(text):
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1)
        hint = f"Did you mean {path.parent / near[0]}?" if near else "Check the path."
        raise UserError(
            f"there is no directory {text}, though {path.parent} is one. {hint} If it is a hub model, download it "
            f"first: `hf download {text}`."
        )
    if looks_local and ("/" in text or isinstance(name_or_path, Path)):
        raise UserError(f"there is no directory {text}. Check the path, or give a hub name such as `owner/model`.")
    return None


def _begins_here(name: str) -> bool:
    """Whether ``m/llava`` is more likely a slip in a path than a hub name."""
    if not Path(name).parent.is_dir():
        return False
    try:
        return not isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # it could be no hub name
        return True


def one_line(error: BaseException) -> str:
    """The first line of a library's message that says something, for messages of our own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def reported_by_us() -> Iterator[None]:
    """Silence transformers' own warnings, where everything it would warn of becomes a message of ours."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def some(names: Iterable[str], *, shown: int = 3) -> str:
    """The first names in order, and how many more there are.

    Example:
        >>> some(["b", "a", "d", "c"])
        'a, b, c and 1 more'
    """
    ordered = sorted(names)
    text = ", ".join(ordered[:shown])
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"


def fingerprint(model: nn.Module) -> str:
    """Hash all weights: names, dtypes, shapes and bytes of every parameter and saved buffer, adapters included.

    Wherever the model is, saved and loaded again or not, the result is the same. Buffers that are not saved (such as
    rotary frequencies) follow from the configuration and are left out: they may differ in the last bit between devices.

    Returns:
        32 hexadecimal digits (xxh3, 128 bits).

    Raises:
        ValueError: a weight is on the meta device, so it has no bytes.
    """
    state = sorted(model.state_dict().items())
    for name, tensor in state:
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values. Load the weights before hashing them.")
    return hash_tensors(state).hexdigest()


_SAMPLED = 4096
"""Values that are looked at in each weight."""


def base_fingerprint(model: nn.Module, *, through: torch.dtype | None = None) -> str | None:
    """Hash a sample of the base's weights: cheap enough for every load, whatever the model's size.

    Of each weight its shape and up to 4,096 values count, spread evenly and rounded to bfloat16, so that a base loaded
    in another precision is still the same one. Names do not, as they differ between versions of transformers. Adapters
    are left out: the result is the same before they are added and while they train.

    Args:
        model: bare, or with adapters.
        through: a type to round to first, in which the other model was.

    Returns:
        32 hexadecimal digits; None for a quantised model, whose values are others.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "quantization_config", None) is not None:
        return None
    weights = (weight for name, weight in model.named_parameters() if ".lora_" not in name)
    return xxhash.xxh3_128("".join(sorted(_sample_hash(weight, through) for weight in weights)).encode()).hexdigest()


def _sample_hash(weight: Tensor, through: torch.dtype | None) -> str:
    flat = weight.detach().reshape(-1)
    sample = flat[:: max(1, -(-len(flat) // _SAMPLED))]
    rounded = sample.to(through or sample.dtype).to(torch.bfloat16)
    return hash_tensors([(str(tuple(weight.shape)), rounded)]).hexdigest()


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
