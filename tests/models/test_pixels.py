"""Limits on pixels that a recipe sets, and sizes that a processor refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cwdpo.errors import ConfigError, DataError
from cwdpo.models.loading import load_processor
from cwdpo.models.pixels import check_sizes, set_pixel_limits

Tiny = Callable[[str], Path]
PATCH = 8  # of the tiny Qwen-VL checkpoints, whose size is rounded to two patches a side


def pixels(directory: Path, size: tuple[int, int], *limits: int | None) -> int:
    """Pixels of an image as the processor leaves it."""
    processor = set_pixel_limits(load_processor(directory), *limits) if limits else load_processor(directory)
    found = processor.image_processor(images=[[Image.new("RGB", size)]], return_tensors="pt")
    return int(found["image_grid_thw"].prod()) * PATCH**2


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_limits_of_processors_that_have_them(name: str, tiny: Tiny, tmp_path: Path) -> None:
    directory = tiny(name)
    assert pixels(directory, (320, 320)) == 64 * 64  # the checkpoint's own most
    assert pixels(directory, (320, 320), None, 32 * 32) == 32 * 32
    assert pixels(directory, (16, 16)) == 32 * 32  # and its least
    assert pixels(directory, (16, 16), 48 * 48, None) == 48 * 48
    processor = set_pixel_limits(load_processor(directory), None, 32 * 32)
    processor.save_pretrained(tmp_path)
    assert pixels(tmp_path, (320, 320)) == 32 * 32


def test_limits_that_mean_nothing_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="no meaning for CLIPImageProcessor"):
        set_pixel_limits(load_processor(tiny("llava")), None, 9)
    with pytest.raises(ConfigError, match=r"min_pixels is 5,000, more than data.max_pixels, which is 4,096"):
        set_pixel_limits(load_processor(tiny("qwen2_vl")), 5000, None)
    set_pixel_limits(load_processor(tiny("llava")), None, None)


def test_sizes_that_a_processor_refuses_are_named(tiny: Tiny) -> None:
    sizes = {(width, 40): f"rows.jsonl:{width}" for width in range(40, 60)}
    check_sizes(load_processor(tiny("qwen2_vl")), sizes)
    with pytest.raises(DataError) as caught:
        check_sizes(load_processor(tiny("qwen2_vl")), {**sizes, (4, 900): "rows.jsonl:7"})
    message = str(caught.value)
    assert message.startswith("rows.jsonl:7: Qwen2VLImageProcessor")
    assert "refuses an image of 4 x 900 pixels: absolute aspect ratio must be smaller than 200" in message
    check_sizes(load_processor(tiny("llava")), {(4, 900): "rows.jsonl:7"})
