"""Where image features are kept: in memory up to a bound, and in files up to another."""

import logging
import os
from collections import OrderedDict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cwdpo.engine.vision import ImageFeatures
from cwdpo.tensor_hash import hash_tensors

logger = logging.getLogger(__name__)


class FeatureStore:
    """``key -> ImageFeatures`` on the CPU. Memory drops what was used longest ago; files stay until deleted."""

    def __init__(self, *, memory: int, directory: Path | None, disk: int) -> None:
        """Set the bounds, in bytes. Files that are there already count.

        Args:
            memory: 0 keeps nothing in memory.
            directory: of the files; None writes none.
            disk: 0 writes no files, but reads those that are there.
        """
        self._memory, self._directory, self._disk = memory, directory, disk
        self._entries: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._in_memory = 0
        self.pin = False
        """Whether features in memory are page-locked, for a GPU to take them from."""
        files = directory.glob("*/*.safetensors") if directory else ()
        self._on_disk = sum(path.stat().st_size for path in files)

    def get(self, key: str) -> ImageFeatures | None:
        """The features kept under a key, or None."""
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            return found
        path = self._path(key)
        found = _read(path) if path is not None and path.exists() else None
        return None if found is None else self._remember(key, found)

    def put(self, key: str, features: ImageFeatures) -> None:
        """Keep features, in memory and, while there is room, in a file."""
        features = features.to("cpu")
        self._remember(key, features)
        path = self._path(key)
        if path is not None and self._on_disk + features.num_bytes <= self._disk:
            try:
                self._on_disk += _write(path, features)
            except (OSError, SafetensorError) as error:
                logger.warning("image features are no longer written to %s: %s", self._directory, error)
                self._disk = 0

    def _remember(self, key: str, features: ImageFeatures) -> ImageFeatures:
        if features.num_bytes > self._memory:
            return features
        features = self._entries[key] = features.pinned() if self.pin else features
        self._in_memory += features.num_bytes
        while self._in_memory > self._memory:
            _, oldest = self._entries.popitem(last=False)
            self._in_memory -= oldest.num_bytes
        return features

    def _path(self, key: str) -> Path | None:
        return None if self._directory is None else self._directory / f"{key}.safetensors"


def _write(path: Path, features: ImageFeatures) -> int:
    """Write a file whole or not at all; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {str(i): tensor.contiguous() for i, tensor in enumerate(features.tensors)}
    metadata = {
        "stacked": str(int(features.stacked)),
        "listed": "".join(str(int(listed)) for listed in features.listed),
        "check": hash_tensors(tensors.items()).hexdigest(),
    }
    written = path.with_suffix(f".{os.getpid()}.partial")  # several ranks may meet the same image
    save_file(tensors, written, metadata)
    written.replace(path)
    return path.stat().st_size


def _read(path: Path) -> ImageFeatures | None:
    """Features from a file; a damaged one is removed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            names = [str(i) for i in range(len(list(file.keys())))]
            tensors = {name: file.get_tensor(name) for name in names}
        if hash_tensors(tensors.items()).hexdigest() != metadata["check"]:
            raise ValueError("its content does not match its checksum")
        pooled, *deep = tensors.values()
        listed = tuple(letter == "1" for letter in metadata["listed"])
        return ImageFeatures(pooled, tuple(deep), metadata["stacked"] == "1", listed)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged (%s); its features are computed again", path, error)
        path.unlink(missing_ok=True)
        return None
