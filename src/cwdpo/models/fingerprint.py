"""A model's fingerprint: equal exactly when the weights are."""

import torch
import xxhash
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """Hash all weights: names, dtypes, shapes and bytes of every parameter and saved buffer, adapters included.

    Wherever the model is, saved and loaded again or not, the result is the same. Buffers that are not saved (such as
    rotary frequencies) follow from the configuration and are left out: they may differ in the last bit between devices.

    Returns:
        32 hexadecimal digits (xxh3, 128 bits).

    Raises:
        ValueError: a weight is on the meta device, so it has no bytes.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values. Load the weights before hashing them.")
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
