"""Fingerprints of models: of all weights, equal exactly when they are; and a cheap one of the base under adapters."""

from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from cwdpo.tensor_hash import hash_tensors


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
