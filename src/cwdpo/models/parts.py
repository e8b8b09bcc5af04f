"""What a vision-language model is made of: vision tower, projector and language model; which of it trains; its hash."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cwdpo.batch import hash_tensors


def bare_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, FSDP and PEFT."""
    known = _bare.get(model)
    found = None if known is None else known()
    if found is None:
        unwrapped = extract_model_from_parallel(model)
        unwrap = getattr(unwrapped, "get_base_model", None)
        found = unwrapped if unwrap is None else unwrap()
        _bare[model] = ref(found)
    bare: PreTrainedModel = found  # type: ignore[assignment]  # it is one of transformers
    return bare


_bare: WeakKeyDictionary[nn.Module, "ref[nn.Module]"] = WeakKeyDictionary()
"""What is inside each wrapper: to find out, accelerate walks over all modules."""


class ModelLimits(NamedTuple):
    """What no prompt or answer may go beyond; None where a model does not say."""

    positions: int | None = None
    """Tokens in a row."""

    read: int | None = None
    """Rows of the input embedding: token ids in a prompt are smaller."""

    written: int | None = None
    """Rows of the output head: token ids in an answer are smaller than these too."""


def model_limits(model: nn.Module) -> ModelLimits:
    """The limits of a model, with or without its weights, wrapped or not."""
    bare = bare_model(model)
    head = bare.get_output_embeddings()
    linear = (part for part in head.modules() if isinstance(part, nn.Linear)) if head is not None else iter(())
    tables = (part for part in bare.get_input_embeddings().modules() if isinstance(part, nn.Embedding))
    read, written = next(tables, None), next(linear, None)  # inside their adapters, where they have some
    return ModelLimits(
        positions=getattr(bare.config.get_text_config(), "max_position_embeddings", None),
        read=None if read is None else read.num_embeddings,
        written=None if written is None else written.out_features,
    )


def vision_tower(model: nn.Module) -> nn.Module | None:
    """The module that encodes images, or None where transformers finds none. For Qwen-VL it holds the merger too."""
    bare = bare_model(model)
    tower: nn.Module = bare.get_encoder(modality="image")
    # transformers returns the model itself where there is no encoder
    return None if tower is bare or tower is bare.base_model else tower


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The vision tower's own weights, by their name in it, without those of its projector.

    Qwen-VL keeps its projector inside the tower, as ``merger`` and, for the deep features, ``deepstack_merger_list``.
    """
    tower = vision_tower(model)
    if tower is None:
        return {}
    return {name: weight for name, weight in tower.named_parameters() if "merger" not in name.split(".", 1)[0]}


def outside_language(bare: PreTrainedModel) -> list[tuple[str, nn.Parameter]]:
    """All weights that image features may depend on: those of neither the decoder, its embeddings nor the head."""
    parts = (bare.get_decoder(), bare.get_input_embeddings(), bare.get_output_embeddings())
    language = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    return [(name, weight) for name, weight in bare.named_parameters() if id(weight) not in language]


def freeze_vision_tower(model: nn.Module) -> int:
    """Stop training the vision tower, but not its projector; 0 weights where transformers finds no tower."""
    weights = vision_parameters(model).values()
    for weight in weights:
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in weights)


def frozen_image_parts(model: nn.Module) -> list[nn.Module]:
    """The parts between pixels and language model of which no weight trains: the vision tower, its projector, both.

    A part is as large as a module without language layers can be. For Qwen-VL, whose tower holds its projector, the
    tower without the mergers is one part and the mergers are another. A tower that trains in one block is not frozen,
    and neither is one that holds adapters. The language model never is: under adapters it is trained all the same.
    """
    bare = bare_model(model)
    language_parts = (bare.get_decoder(), bare.get_input_embeddings(), bare.get_output_embeddings())
    language = {id(module) for part in language_parts if part is not None for module in part.modules()}
    tower = vision_tower(bare)

    def frozen(part: nn.Module) -> bool:
        return not any(weight.requires_grad for weight in part.parameters())

    def outside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if any(id(inner) in language for inner in child.modules()):
                yield from () if id(child) in language else outside(child)
            elif child is tower and not frozen(tower):
                named = dict(tower.named_children())
                merging = [part for name, part in named.items() if "merger" in name]
                rest = [part for name, part in named.items() if "merger" not in name]
                yield from (part for group in (merging, rest) if all(map(frozen, group)) for part in group)
            elif frozen(child):
                yield child

    return list(outside(bare))


def keep_in_eval(parts: Iterable[nn.Module]) -> None:
    """Take :func:`frozen_image_parts` out of training mode, in which batch norm computes other features than the ones
    that the weights were trained with, and moves its statistics. ``model.train()`` puts them back into it, so this is
    called at every pass."""
    for part in parts:
        part.eval()


def cast_images(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's inputs with floating-point ones, which are pixels, in the type of the vision tower's weights.

    Processors make float32; many towers cast it themselves, and the others stop at their first layer.
    """
    tower = vision_tower(model) or bare_model(model)
    # weights of less than 2 bytes are quantised: their layers take other types than their own
    types = (weight.dtype for weight in tower.parameters() if weight.is_floating_point() and weight.itemsize > 1)
    dtype = next(types, torch.float32)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


class PartSize(NamedTuple):
    """How many weights one part has, and how many of them train. Tied weights count once."""

    part: str
    total: int
    trainable: int


def part_sizes(model: nn.Module) -> list[PartSize]:
    """Count the weights of every part that has any; the output head goes with the language model."""
    adapter_prefix = getattr(getattr(model, "base_model", None), "prefix", None) or "lora_"
    bare = bare_model(model)
    head = bare.get_output_embeddings()
    vision = {id(weight) for weight in vision_parameters(model).values()}
    language = {id(weight) for part in (bare.get_decoder(), head) if part is not None for weight in part.parameters()}
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


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is divided among processes: by FSDP2, or by DeepSpeed's ZeRO-3."""
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


def has_sharded_weights(model: nn.Module) -> bool:
    """Whether any weight of a model is divided among processes, which must then make equally many passes."""
    return isinstance(model, FullyShardedDataParallel | FSDPModule) or any(map(is_sharded, model.parameters()))


def fingerprint(model: nn.Module) -> str:
    """Hash all weights: names, dtypes, shapes and bytes of every parameter and saved buffer, adapters included.

    Wherever the model is, saved and loaded again or not, the result is the same: 32 hexadecimal digits. Buffers that
    are not saved (such as rotary frequencies) follow from the configuration and are left out: they may differ in the
    last bit between devices.
    """
    state = sorted(model.state_dict().items())
    for name, tensor in state:
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values. Load the weights before hashing them.")
    return hash_tensors(state).hexdigest()
