"""Images: encoded once for all answers of a prompt, without gradient where nothing there trains, and remembered.

A vision tower that does not train gives the same features of an image at every step, to the policy and to the reference
alike, so they are computed once. Kept is what stands in place of the image tokens, after the projector (transformers'
public interface takes nothing earlier), so nothing is kept while the projector trains.
"""

import inspect
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from cwdpo.batch import Batch, hash_tensors, image_key
from cwdpo.engine.layout import merge_images
from cwdpo.memory import free_memory, processes_here
from cwdpo.models.parts import cast_images, is_sharded, outside_language, vision_tower

logger = logging.getLogger(__name__)


@contextmanager
def encode_frozen_without_grad(bare: PreTrainedModel) -> Iterator[None]:
    """While open, the frozen parts of the vision tower run without autograd.

    Frozen weights alone do not stop it: ``enable_input_require_grads``, which adapters with gradient checkpointing
    need, makes the tower's input require a gradient too, and a whole tower is backpropagated through for nothing.
    """
    before: list[bool] = []

    def switch_off(*_: object) -> None:
        before.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)

    def switch_back(*_: object) -> None:
        torch.set_grad_enabled(before.pop())

    with ExitStack() as stack:
        for part in _frozen_parts(bare):
            stack.enter_context(part.register_forward_pre_hook(switch_off))
            stack.enter_context(part.register_forward_hook(switch_back, always_call=True))
        yield


def _frozen_parts(bare: PreTrainedModel) -> list[nn.Module]:
    """The whole tower if nothing in it trains; else, if only Qwen's mergers do, which come last, all but them."""
    tower = vision_tower(bare)
    if tower is None:
        return []
    trainable = {name.split(".", 1)[0] for name, weight in tower.named_parameters() if weight.requires_grad}
    if not trainable:
        return [tower]
    if not all("merger" in name for name in trainable):
        return []
    rest = [child for name, child in tower.named_children() if "merger" not in name]
    return [part for child in rest for part in (child if isinstance(child, nn.ModuleList) else [child])]


def can_share_images(bare: PreTrainedModel) -> bool:
    """Whether the model takes image features in place of pixels, and says which tokens stand for them."""
    return (
        "mm_encoder_outputs" in inspect.signature(bare.forward).parameters
        and hasattr(bare, "get_image_features")
        and getattr(bare.config, "image_token_id", None) is not None
    )


@dataclass(frozen=True)
class ImageFeatures:
    """What one prompt's images are to the language model, one vector an image token, in reading order."""

    pooled: Tensor
    """``(n, hidden)`` what takes the place of the image tokens."""

    deep: tuple[Tensor, ...] = ()
    """``(n, hidden)`` each: what Qwen3-VL adds at the first layers of its language model."""

    stacked: bool = False
    """Whether the model hands ``pooled`` on as one tensor; else as a list of tensors."""

    listed: tuple[bool, ...] = ()
    """Of each of ``deep``, whether it is handed on as a list."""

    @property
    def tensors(self) -> list[Tensor]:
        return [self.pooled, *self.deep]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def each(self, change: Callable[[Tensor], Tensor]) -> "ImageFeatures":
        return replace(self, pooled=change(self.pooled), deep=tuple(map(change, self.deep)))

    def to(self, device: torch.device | str) -> "ImageFeatures":
        """The same on a device, apart from any graph."""
        return self.each(lambda tensor: tensor.detach().to(device, non_blocking=tensor.is_pinned()))


Lookup: TypeAlias = Callable[[Sequence[int], Callable[[int], ImageFeatures]], list[ImageFeatures]]
"""Given prompts that have images and a way to encode one of them, the features of each."""


@contextmanager
def share_images(
    bare: PreTrainedModel, batch: Batch, owners: Sequence[int], *, lookup: Lookup | None = None
) -> Iterator[None]:
    """While open, a forward pass encodes the pixels of each prompt once for all its rows, or has them looked up.

    The pixels go through the model's wrappers (DDP, FSDP, mixed precision) and are exchanged for features inside.
    ``owners`` are the prompts of the pass's rows. A ``lookup`` has prompts encoded one at a time, so that features do
    not depend, in their last bit, on the batch they were first met in.
    """
    prompts = batch["prompts"]
    pictured = [i for i, prompt in enumerate(prompts) if "pixel_values" in prompt]

    def exchange(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pixels = kwargs.pop("pixel_values")
        if lookup is None:
            found = _encode(bare, [prompts[i] for i in pictured], pixels)
        else:
            found = lookup(
                pictured, lambda i: _encode(bare, [prompts[i]], prompts[i]["pixel_values"].to(pixels.dtype))[0]
            )
        features = dict(zip(pictured, found, strict=True))
        rows = [features[owner] for owner in owners if owner in features]
        return args, kwargs | {"mm_encoder_outputs": {"image": _put_together(rows)}}

    with bare.register_forward_pre_hook(exchange, with_kwargs=True):
        yield


def image_outputs(
    bare: PreTrainedModel, prompts: Sequence[dict[str, Tensor]], features: "FeatureCache"
) -> ModelOutput | None:
    """The features of the images of a pass with one row a prompt, looked up, in the form that the model's own encoder
    gives; None where there are no images, or where the forward pass must compute them."""
    pictured = [i for i, prompt in enumerate(prompts) if "pixel_values" in prompt]
    lookup = features.lookup_prompts(bare, prompts, bare.device) if pictured else None
    if lookup is None:
        return None

    def encode(i: int) -> ImageFeatures:
        here = {name: value.to(bare.device) for name, value in prompts[i].items()}
        return _encode(bare, [here], cast_images(bare, here)["pixel_values"])[0]

    return _put_together(lookup(pictured, encode))


def _encode(bare: PreTrainedModel, prompts: Sequence[dict[str, Tensor]], pixels: Tensor) -> list[ImageFeatures]:
    """Features of the images of some prompts, whose ``pixel_values`` together are ``pixels``."""
    get_features: Any = bare.base_model.get_image_features
    accepted = inspect.signature(get_features).parameters
    described = {name: value for name, value in merge_images(prompts).items() if name in accepted}
    features = get_features(**described | {"pixel_values": pixels}, return_dict=True)
    deep = features.get("deepstack_features") or ()
    flat = [_flat(values) for values in (features.pooler_output, *deep)]
    counts = [len(flat[0])]
    if len(prompts) > 1:  # of one prompt, all is known without asking the GPU
        tokens = [(prompt["input_ids"] == bare.config.image_token_id).sum() for prompt in prompts]
        counts = torch.stack(tokens).tolist()
    pieces = [torch.split(values, counts) for values in flat]
    stacked = isinstance(features.pooler_output, Tensor)
    listed = tuple(isinstance(level, list | tuple) for level in deep)
    return [ImageFeatures(pooled, tuple(levels), stacked, listed) for pooled, *levels in zip(*pieces, strict=True)]


def _flat(values: Tensor | Sequence[Tensor]) -> Tensor:
    """``(n, hidden)`` from a tensor with any leading dimensions, or from a list of such tensors."""
    if isinstance(values, Tensor):
        return values.reshape(-1, values.shape[-1])
    return torch.cat([value.reshape(-1, value.shape[-1]) for value in values])


@dataclass
class _Encoded(ModelOutput):
    """The two fields of a tower's output that the models read."""

    pooler_output: Any = None
    deepstack_features: Any = None


def _put_together(rows: Sequence[ImageFeatures]) -> _Encoded:
    """The features of a pass's rows in the form that the model's own encoder gives."""
    first = rows[0]
    pooled, *deep = (torch.cat(values) for values in zip(*(row.tensors for row in rows), strict=True))
    return _Encoded(
        pooler_output=pooled[None] if first.stacked else [pooled],
        deepstack_features=[[level] if listed else level for level, listed in zip(deep, first.listed, strict=True)],
    )


Room: TypeAlias = int | Literal["auto"]
"""Megabytes (2**20 bytes), or as many as are free."""


class FeatureCache:
    """Features by image content and tower. One may serve any number of models and engines.

    What comes first is kept until the room is used up: an epoch visits each image once, so that a cache which gives up
    its oldest entry would give up each just before it is wanted. A ``directory`` keeps features beyond main memory, and
    for a resumed run.
    """

    def __init__(
        self,
        *,
        memory_mb: Room = "auto",
        directory: Path | None = None,
        disk_mb: Room = 0,
        images: int | None = None,
    ) -> None:
        """Nothing is measured or written before the first image is encoded.

        Args:
            memory_mb: of main memory; ``auto`` is a quarter of what is free, shared among the node's processes.
            directory: of the files.
            disk_mb: of files; ``auto`` takes what all images need where memory does not hold them and they fit into a
                quarter of the free disk, else nothing.
            images: how many there are, if it is known; for ``disk_mb: auto``, and to say which share is kept.
        """
        self._store = FeatureStore(memory=0, directory=directory, disk=0)
        self._asked, self._images, self._planned = (memory_mb, disk_mb), images, False
        self._fingerprints: WeakKeyDictionary[nn.Module, tuple[list[int], str]] = WeakKeyDictionary()
        self._outside: WeakKeyDictionary[nn.Module, list[tuple[str, nn.Parameter]]] = WeakKeyDictionary()
        self._met: set[str] = set()
        self._again = self._found_again = 0
        self._is_off = False
        self.report: dict[str, Any] = {"memory_mb": memory_mb, "disk_mb": disk_mb, "computed": 0, "found": 0}
        """Counts of prompts whose images were encoded and looked up; ``hit_rate``: of those met before, the share that
        was found; ``expected_hit_rate``; ``not_used`` says for which models, and why."""

    def lookup(self, bare: PreTrainedModel, batch: Batch) -> Lookup | None:
        """What :func:`share_images` looks a batch's images up with; None where the forward pass must compute them."""
        return self.lookup_prompts(bare, batch["prompts"], batch["answer_ids"].device, batch.get("image_keys"))

    def lookup_prompts(
        self,
        bare: PreTrainedModel,
        prompts: Sequence[dict[str, Tensor]],
        device: torch.device,
        keys: Sequence[str] | None = None,
    ) -> Lookup | None:
        """The same of prompts alone; ``keys`` are their :func:`image_key`, where they are known."""
        if self._is_off:
            return None
        if bare not in self._outside:
            self._outside[bare] = outside_language(bare)
        reason = why_not_cacheable(bare, self._outside[bare])
        if reason is not None:
            self.report.setdefault("not_used", {})[type(bare).__name__] = reason
            return None
        keys = keys or [image_key(prompt) for prompt in prompts]
        return partial(self._look_up, bare, keys, device)

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
        self,
        bare: PreTrainedModel,
        keys: Sequence[str],
        device: torch.device,
        wanted: Sequence[int],
        encode: Callable[[int], ImageFeatures],
    ) -> list[ImageFeatures]:
        kind = device.type
        self._store.pin = kind == "cuda"
        precision = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "own"
        features = []
        tower = self._fingerprint(bare)
        for i in wanted:
            key = f"{tower}-{kind}-{precision}/{keys[i]}"
            found = self._store.get(key)
            self._count(key, found is not None)
            if found is None:
                found = encode(i)
                if not self._planned:
                    self._plan(found.num_bytes)
                self._store.put(key, found)
            features.append(found.to(device))
        return features

    def _count(self, key: str, is_found: bool) -> None:
        self.report["found" if is_found else "computed"] += 1
        if key in self._met:
            self._again += 1
            self._found_again += is_found
            self.report["hit_rate"] = round(self._found_again / self._again, 4)
        self._met.add(key)

    def _plan(self, size: int) -> None:
        """Decide how much is kept, when one image's features are known to take ``size`` bytes; and say so."""
        self._planned = True
        memory_mb, disk_mb = self._asked
        memory = free_memory() // 4 // processes_here() if memory_mb == "auto" else memory_mb * 2**20
        needed = None if self._images is None else size * self._images
        if disk_mb != "auto":
            disk = disk_mb * 2**20
        elif needed is None or needed <= memory:
            disk = 0
        else:
            disk = self._store.disk_for(needed + _HEADER * (self._images or 0))
        self._store.memory, self._store.disk = memory, disk
        self.report |= {"memory_mb": memory // 2**20, "disk_mb": disk // 2**20}
        if not needed:
            return
        share = min(1.0, max(memory, disk) / needed)
        self.report["expected_hit_rate"] = round(share, 4)
        logger.info(
            "image features: %.2f MB an image; %d MB of memory and %d MB of files keep %.0f %% of %d images, so that "
            "about that share is found in each epoch after the first",
            size / 2**20,
            memory // 2**20,
            disk // 2**20,
            100 * share,
            self._images,
        )

    def log_reached(self) -> None:
        """Say how many of the images that were met before were found."""
        if "hit_rate" in self.report:
            expected = self.report.get("expected_hit_rate")
            logger.info(
                "image features: %.0f %% of the images met before were found%s",
                100 * self.report["hit_rate"],
                "" if expected is None else f" ({100 * expected:.0f} % were expected)",
            )

    def _fingerprint(self, bare: PreTrainedModel) -> str:
        # torch counts changes in place: a tower may be trained between two times at which it is frozen
        changes = [0 if weight.is_inference() else weight._version for _, weight in self._outside[bare]]
        if bare not in self._fingerprints or self._fingerprints[bare][0] != changes:
            weights = dict(outside_language(bare)) | dict(bare.named_buffers())
            digest = hash_tensors(sorted(weights.items()))
            # what besides its weights makes a tower: its settings, and the library that runs it
            text = {name for name, value in vars(bare.config).items() if value is bare.config.get_text_config()}
            ignored = text | {"_name_or_path", "transformers_version", "architectures", "use_cache", "dtype"}
            settings = {name: value for name, value in bare.config.to_dict().items() if name not in ignored}
            settings["library"] = transformers.__version__
            digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
            self._fingerprints[bare] = (changes, digest.hexdigest())
        return self._fingerprints[bare][1]


def why_not_cacheable(bare: PreTrainedModel, outside: Sequence[tuple[str, nn.Parameter]] | None = None) -> str | None:
    """The reason why a model's image features may not be kept from one step to the next, or None where they may.

    ``outside`` are its weights outside the language model, where they are known: to find them takes a walk over all.
    """
    if not can_share_images(bare):
        return "the model takes no image features in place of pixels"
    outside = outside_language(bare) if outside is None else outside
    if any(is_sharded(weight) for _, weight in outside):
        return "the weights are divided among processes, which must all encode at the same time"
    trains = next((name for name, weight in outside if weight.requires_grad), None)
    if trains is not None:
        return f"{trains} trains"
    return None


_HEADER = 4096
"""Bytes of a file beyond those of the features in it, at most."""


class FeatureStore:
    """``key -> ImageFeatures`` on the CPU. What comes first stays, in memory and in files, until there is no more room.

    The bounds are in bytes, and files that are there already count. With ``disk=0`` none are written, but those that
    are there are read.
    """

    def __init__(self, *, memory: int, directory: Path | None, disk: int) -> None:
        self.memory, self.disk = memory, disk
        self._directory = directory
        self._entries: dict[str, ImageFeatures] = {}
        self._in_memory = 0
        self.pin = False
        """Whether features in memory are page-locked, for a GPU to take them from without waiting."""
        files = directory.glob("*/*.safetensors") if directory else ()
        self._on_disk = sum(path.stat().st_size for path in files)

    def disk_for(self, needed: int) -> int:
        """``needed`` bytes if they fit into a quarter of the free disk, files that are there already among them."""
        if self._directory is None:
            return 0
        place = next(path for path in (self._directory, *self._directory.parents) if path.exists())
        return needed if needed - self._on_disk <= shutil.disk_usage(place).free // 4 else 0

    def get(self, key: str) -> ImageFeatures | None:
        found = self._entries.get(key)
        if found is not None:
            return found
        path = self._path(key)
        found = _read(path) if path and path.exists() else None
        return None if found is None else self._remember(key, found)

    def put(self, key: str, features: ImageFeatures) -> None:
        """Keep features, in memory and in a file, where there is room."""
        features = features.to("cpu")
        self._remember(key, features)
        path = self._path(key)
        if path is not None and self._on_disk + features.num_bytes <= self.disk:
            try:
                self._on_disk += _write(path, features)
            except (OSError, SafetensorError) as error:
                logger.warning("image features are no longer written to %s: %s", self._directory, error)
                self.disk = 0

    def _remember(self, key: str, features: ImageFeatures) -> ImageFeatures:
        if self._in_memory + features.num_bytes > self.memory:
            return features
        self._entries[key] = features.each(Tensor.pin_memory) if self.pin else features
        self._in_memory += features.num_bytes
        return self._entries[key]

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
