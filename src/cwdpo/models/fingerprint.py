"""A model's fingerprint: equal exactly when the weights are."""

from torch import nn

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
