"""What a processor does to the sizes of images: limits that a recipe may set, and sizes that it refuses."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image
from transformers import ProcessorMixin

from cwdpo.errors import ConfigError, DataError

_TRIED = 4
"""Images of extreme sizes that are tried, of each kind of extreme: what takes these takes the others."""


def set_pixel_limits(processor: ProcessorMixin, least: int | None, most: int | None) -> ProcessorMixin:
    """Let a processor resize images to between so many pixels; None leaves a limit as the checkpoint has it.

    For processors that have such limits, as those of Qwen-VL and GLM; others are a ``ConfigError``. The limits are
    saved with the processor. They are those of width times height after resizing, which is rounded to whole patches.
    """
    if least is None and most is None:
        return processor
    images: Any = processor.image_processor
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    if not {"min_pixels", "max_pixels"} <= set(known):
        raise ConfigError(
            f"data.min_pixels and data.max_pixels have no meaning for {type(images).__name__}, which resizes images by "
            "other rules. Take them out, or make the image files smaller.",
            setting="data.max_pixels" if least is None else "data.min_pixels",
        )
    size: dict[str, Any] = dict(images.size) if isinstance(images.size, Mapping) else dataclasses.asdict(images.size)
    given = {"shortest_edge": least, "longest_edge": most}  # the names that these processors have for the two
    new = {**size, **{name: value for name, value in given.items() if value is not None}}
    if new["shortest_edge"] > new["longest_edge"]:
        raise ConfigError(
            f"data.min_pixels is {new['shortest_edge']:,}, more than data.max_pixels, which is "
            f"{new['longest_edge']:,}. Write both, the lower first.",
            setting="data.max_pixels" if least is None else "data.min_pixels",
        )
    images.size = type(images.size)(**new)
    return processor


def check_sizes(processor: ProcessorMixin, sizes: Mapping[tuple[int, int], str]) -> None:
    """Refuse, with a ``DataError``, an image whose shape the processor does not take.

    Args:
        sizes: width and height of the images in the data, each with the ``file:line`` of a row that has one.
    """
    by_shape = sorted(sizes, key=lambda size: max(size) / min(size))
    by_side = sorted(sizes, key=min)
    for width, height in dict.fromkeys([*by_shape[-_TRIED:], *by_side[:_TRIED]]):
        try:
            processor.image_processor(images=[[Image.new("RGB", (width, height))]], return_tensors="pt")
        except (ValueError, TypeError, IndexError, RuntimeError, OSError, ZeroDivisionError) as problem:
            raise DataError(
                f"{sizes[width, height]}: {type(processor.image_processor).__name__} refuses an image of {width} x "
                f"{height} pixels: {problem}. Cut or pad the image, or take the row out."
            ) from problem
