"""Hashes of tensors by content: equal for equal names, types, shapes and bytes, wherever the tensors lie."""

from collections.abc import Iterable

import torch
import xxhash
from torch import Tensor


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> xxhash.xxh3_128:
    """Hash named tensors in the order given.

    Returns:
        An xxh3 hash of 128 bits, to which more may be added.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest
