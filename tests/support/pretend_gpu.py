"""A GPU that is not there: tensors in main memory that say they are on one, and a list of the waits of the program.

A program that asks a GPU for a value waits until all work before is done. It does so in few ways: by taking a value
(``item``, ``tolist``, ``cpu``, a condition), by asking for how many elements there are of something (``nonzero``, an
index of booleans), and by copies that do not say `non_blocking`. Here every call of torch is looked at on its way, by
torch's ``TorchFunctionMode``. Tensors on different devices that meet, which a GPU refuses, are an error here too.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

GPU = torch.device("cuda", 0)

_VALUES = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero")
_COUNTS = (
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose"),
    *("_unique2", "histc", "nonzero_static"),
)
_COPIES = ("tensor", "as_tensor", "new_tensor")
_PLACES = ("__getitem__", "__setitem__", "index_put", "index_put_")


class PretendGPU(TorchFunctionMode):
    """While open, tensors may be on :data:`GPU`; ``waits`` are where the program would have waited for it."""

    def __init__(self, *packages: str) -> None:
        """A wait belongs to the first of the ``packages`` (names of directories) on the way up from it."""
        super().__init__()
        self._packages = packages
        self.waits: list[tuple[str, str, str]] = []
        """Package, file with the function's name, and what was called, of each."""

    def place(self, model: nn.Module) -> None:
        """Have a model on the GPU."""
        for tensor in (*model.parameters(), *model.buffers()):
            _mark(tensor)

    def of(self, package: str) -> list[str]:
        """The waits of a package: ``file.function: call``."""
        return [f"{where}: {call}" for found, where, call in self.waits if found == package]

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = (resolve_name(func) or getattr(func, "__name__", "")).split(".")[-1]
        owner = getattr(func, "__self__", None)
        if name == "__get__" and owner in (Tensor.device, Tensor.is_cuda):
            there = _is_there(args[0])
            return (GPU if there else args[0].device) if owner is Tensor.device else there
        if name in ("pin_memory", "is_pinned"):
            return self._pinned(name, args[0])
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._moved(name, func, args, kwargs)
        inputs = list(tensors_in([args, kwargs]))
        there = any(map(_is_there, inputs))
        device = kwargs.get("device")
        asked = device is not None and torch.device(device).type == GPU.type
        if asked:
            kwargs["device"] = torch.device("cpu")
        if (there and (name in (*_VALUES, *_COUNTS) or (name == "where" and len(args) + len(kwargs) == 1))) or (
            name in _COPIES and (asked or there)
        ):
            self._note(name)
        elif there and name in _PLACES:
            self._look_at_index(name, args)
        elif there and name == "repeat_interleave" and kwargs.get("output_size") is None:
            self._note(name)
        elif there and name not in ("__get__", "__set__", "copy_", "set_", "backward", "register_hook"):
            apart = [each for each in inputs if not _is_there(each) and each.ndim]
            assert not apart, f"{name}: a tensor of shape {tuple(apart[0].shape)} on the CPU meets one on the GPU"
        result = func(*args, **kwargs)
        if asked or there:
            for tensor in tensors_in(result):
                _mark(tensor)
        return result

    def _moved(self, name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        tensor, before = args[0], _is_there(args[0])
        target = None
        rest = []
        for each in args[1:]:
            if isinstance(each, str | torch.device | int) and not isinstance(each, bool):
                target = torch.device("cuda" if isinstance(each, int) else each)
            elif isinstance(each, Tensor):
                target = GPU if _is_there(each) else each.device
                rest.append(each)
            else:
                rest.append(each)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs.pop("device"))
        if name != "to":
            target = torch.device(name)
        after = before if target is None else target.type == GPU.type
        if after != before and not kwargs.get("non_blocking"):
            self._note(name if after else f"{name}, from the GPU")
        result = func(tensor, *rest, **kwargs) if name == "to" and (rest or kwargs) else tensor
        if after == before:
            return _mark(result) if after else result
        result = result.clone() if result is tensor else result
        return _mark(result) if after else result

    def _pinned(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return getattr(tensor, "is_pretended_pinned", False)
        pinned: Any = tensor.clone()
        pinned.is_pretended_pinned = True
        return pinned

    def _look_at_index(self, name: str, args: Sequence[Any]) -> None:
        parts = args[1] if isinstance(args[1], tuple) else (args[1],)
        for part in parts:
            if isinstance(part, np.ndarray | list) or (isinstance(part, Tensor) and part.ndim):
                kind = torch.as_tensor(part).dtype
                if kind == torch.bool and not (name == "__setitem__" and not isinstance(args[2], Tensor)):
                    self._note(f"{name} by booleans")
                elif not (isinstance(part, Tensor) and _is_there(part)):
                    self._note(f"{name} by an index on the CPU")

    def _note(self, call: str) -> None:
        frame: Any = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            package = next((each for each in self._packages if each in path.parts), None)
            if package is not None:
                self.waits.append((package, f"{path.stem}.{frame.f_code.co_name}", call))
                return
            frame = frame.f_back


def _is_there(tensor: Tensor) -> bool:
    return getattr(tensor, "is_on_pretended_gpu", False)


def _mark(tensor: Any) -> Any:
    tensor.is_on_pretended_gpu = True
    return tensor


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors in nested lists and mappings."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_in(value)
