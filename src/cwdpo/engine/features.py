"""Image features of a vision tower that does not train: computed once, then remembered.

A tower that stays as it is says the same of an image at every step, to the policy and to the reference alike. Kept is
what stands in place of the image tokens, after the projector (transformers' public interface takes nothing earlier), so
nothing is kept while the projector trains.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cwdpo.batch import Batch, image_key
from cwdpo.engine.feature_store import FeatureStore
from cwdpo.engine.vision import ImageFeatures, Lookup, can_share_images
from cwdpo.tensor_hash import hash_tensors


class FeatureCache:
    """Features by image content and tower. One may serve any number of models and engines."""

    def __init__(self, *, memory_mb: int = 1024, directory: Path | None = None, disk_mb: int = 0) -> None:
        """Set the bounds.

        Args:
            memory_mb: most megabytes (2**20 bytes) of features in main memory; the longest unused go first.
            directory: where features are kept beyond that, and for a resumed run. None keeps none.
            disk_mb: most megabytes there; when they are used up, nothing more is written.
        """
        self._store = FeatureStore(memory=memory_mb * 2**20, directory=directory, disk=disk_mb * 2**20)
        self._fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._is_off = False
        self.report: dict[str, Any] = {"memory_mb": memory_mb, "disk_mb": disk_mb, "computed": 0, "found": 0}
        """Counts of prompts whose images were encoded and looked up; ``not_used`` says for which models, and why."""

    def lookup(self, model: nn.Module, bare: Any, batch: Batch) -> Lookup | None:
        """What :func:`cwdpo.engine.vision.share_images` needs to look a batch's images up, or None where they must be
        computed in the forward pass."""
        if self._is_off:
            return None
        reason = why_not_cacheable(model, bare)
        if reason is not None:
            self.report.setdefault("not_used", {})[type(bare).__name__] = reason
            return None
        return partial(self._look_up, bare, batch)

    def used_for(self, model: nn.Module, bare: Any) -> bool:
        """Whether the model's features are kept."""
        return not self._is_off and why_not_cacheable(model, bare) is None

    @contextmanager
    def off(self) -> Iterator[None]:
        """While open, nothing is looked up."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    def refuse(self, reason: str) -> None:
        """Look nothing up any more."""
        self._is_off = True
        self.report["off"] = reason

    @torch.no_grad()
    def _look_up(
        self, bare: Any, batch: Batch, wanted: Sequence[int], encode: Callable[[int], ImageFeatures]
    ) -> list[ImageFeatures]:
        device = batch["answer_ids"].device
        self._store.pin = device.type == "cuda"
        keys = batch.get("image_keys") or [image_key(prompt) for prompt in batch["prompts"]]
        prefix = f"{self._fingerprint(bare)}-{device.type}-{_precision(device.type)}"
        features = []
        for i in wanted:
            key = f"{prefix}/{keys[i]}"
            found = self._store.get(key)
            self.report["computed" if found is None else "found"] += 1
            if found is None:
                found = encode(i)
                self._store.put(key, found)
            features.append(found.to(device))
        return features

    def _fingerprint(self, bare: Any) -> str:
        if bare not in self._fingerprints:
            weights = dict(_outside_language(bare)) | dict(bare.named_buffers())
            digest = hash_tensors(sorted(weights.items()))
            digest.update(json.dumps(_vision_settings(bare.config), sort_keys=True, default=str).encode())
            self._fingerprints[bare] = digest.hexdigest()
        return self._fingerprints[bare]


def why_not_cacheable(model: nn.Module, bare: Any) -> str | None:
    """The reason why a model's image features may not be kept from one step to the next, or None where they may.

    Args:
        model: as it is called, in its wrappers.
        bare: the transformers model inside.
    """
    if not can_share_images(bare):
        return "the model takes no image features in place of pixels"
    outside = _outside_language(bare)
    if any(_is_sharded(weight) for _, weight in outside):
        return "the weights are divided among processes, which must all encode at the same time"
    trains = next((name for name, weight in outside if weight.requires_grad), None)
    if trains is not None:
        return f"{trains} trains"
    vision = bare.config.get_text_config() is not bare.config and getattr(bare.config, "vision_config", None)
    drops = {name for name, value in (vision.to_dict() if vision else {}).items() if "drop" in name and value}
    if drops:
        return f"the vision tower drops at random ({', '.join(sorted(drops))})"
    return None


def _outside_language(bare: Any) -> list[tuple[str, Tensor]]:
    """All weights that image features may depend on: those of neither the decoder, its embeddings nor the head."""
    parts = (bare.get_decoder(), bare.get_input_embeddings(), bare.get_output_embeddings())
    language = {id(weight) for part in parts if part is not None for weight in part.parameters()}
    return [(name, weight) for name, weight in bare.named_parameters() if id(weight) not in language]


def _is_sharded(weight: Tensor) -> bool:
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")  # FSDP2's, and DeepSpeed's ZeRO-3


def _vision_settings(config: Any) -> dict[str, Any]:
    """What besides its weights makes a tower: its settings, and the library that runs it."""
    text = [name for name, value in vars(config).items() if value is config.get_text_config()]
    ignored = {*text, "_name_or_path", "transformers_version", "architectures", "use_cache", "dtype"}
    settings = {name: value for name, value in config.to_dict().items() if name not in ignored}
    return {**settings, "library": transformers.__version__}


def _precision(device: str) -> str:
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "own"
