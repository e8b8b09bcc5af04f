"""What a vision-language model is made of: vision tower, projector and language model; which of it trains; its hash."""

from typing import NamedTuple

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cwdpo.batch import hash_tensors


def bare_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside DDP, FSDP and PEFT."""
    unwrapped = extract_model_from_parallel(model)
    unwrap = getattr(unwrapped, "get_base_model", None)
    bare: PreTrainedModel = unwrapped if unwrap is None else unwrap()
    return bare


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


def freeze_vision_tower(model: nn.Module) -> int:
    """Stop training the vision tower, but not its projector; 0 weights where transformers finds no tower."""
    weights = vision_parameters(model).values()
    for weight in weights:
        weight.requires_grad_(False)
    return sum(weight.numel() for weight in weights)


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
