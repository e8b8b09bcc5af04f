"""Processors: the same without torchvision, with the video settings of the source kept."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import NAMES, build
from transformers import AutoProcessor, AutoTokenizer, Qwen2VLProcessor
from transformers.utils import is_torchvision_available

from cwdpo.errors import UserError
from cwdpo.models.loading import load_processor

Tiny = Callable[[str], Path]
needs_torchvision_missing = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")


def encode(processor: Any) -> dict[str, torch.Tensor]:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    parts = [{"type": "image"}, {"type": "text", "text": "What is in the picture?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    return dict(processor(images=[image], text=text, return_tensors="pt"))


@pytest.mark.parametrize("name", [*NAMES, "llava_onevision", "internvl", "gemma3", "mllama"])
def test_saved_and_loaded_again_it_encodes_the_same(name: str, tiny: Tiny, tmp_path: Path) -> None:
    processor = load_processor(tiny(name))
    assert processor.tokenizer.pad_token_id is not None
    assert processor.tokenizer.padding_side == AutoTokenizer.from_pretrained(tiny(name)).padding_side
    processor.save_pretrained(tmp_path)
    before, after = encode(processor), encode(load_processor(str(tmp_path)))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_where_auto_processor_works_it_is_used(name: str, tiny: Tiny) -> None:
    assert type(load_processor(tiny(name))) is type(AutoProcessor.from_pretrained(tiny(name)))


@needs_torchvision_missing
@pytest.mark.parametrize(
    ("name", "kept"),
    [("qwen2_vl", "preprocessor_config.json"), ("qwen3_vl", "video_preprocessor_config.json")],
)
def test_file_with_video_settings_survives_byte_for_byte(name: str, kept: str, tiny: Tiny, tmp_path: Path) -> None:
    source = (tiny(name) / kept).read_bytes()
    load_processor(tiny(name)).save_pretrained(tmp_path / "first")
    load_processor(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / kept).read_bytes() == source
    # a full load reads the section of processor_config.json first, so there must be none
    assert "video_processor" not in json.loads((tmp_path / "second" / "processor_config.json").read_text())


@needs_torchvision_missing
def test_section_with_video_settings_survives_byte_for_byte(tiny: Tiny, tmp_path: Path) -> None:
    def section(directory: Path) -> str:
        settings = json.loads((directory / "processor_config.json").read_text())
        return json.dumps(settings["video_processor"], sort_keys=True)

    load_processor(tiny("qwen2_5_vl")).save_pretrained(tmp_path / "first")
    load_processor(tmp_path / "first").save_pretrained(tmp_path / "second")
    assert section(tmp_path / "second") == section(tiny("qwen2_5_vl"))
    assert json.loads(section(tmp_path / "second"))["video_processor_type"] == "Qwen2VLVideoProcessor"


@needs_torchvision_missing
def test_one_that_needs_torchvision_for_images_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="pip install torchvision"):
        load_processor(tiny("mistral3"))


@needs_torchvision_missing
def test_class_is_the_checkpoints_own_and_survives_pickling(tiny: Tiny, tmp_path: Path) -> None:
    processor = load_processor(tiny("qwen2_vl"))
    assert isinstance(processor, Qwen2VLProcessor)
    assert type(processor).__name__ == "Qwen2VLProcessor"
    copy = pickle.loads(pickle.dumps(processor))  # data loader workers do this
    copy.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Qwen2VLProcessor"
    assert (tmp_path / "preprocessor_config.json").exists()
    assert torch.equal(encode(copy)["pixel_values"], encode(processor)["pixel_values"])


def test_missing_pad_token_becomes_the_end_token(tmp_path: Path) -> None:
    directory = build("llava", tmp_path / "llava")
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_processor(directory).tokenizer.pad_token == "</s>"


def test_a_tokenizer_alone_is_no_processor(tiny: Tiny, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(tiny("llava")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="instead of a processor"):
        load_processor(tmp_path)


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/dir", Path("nowhere")])
def test_missing_directory_is_named(missing: str | Path) -> None:
    with pytest.raises(UserError, match="there is no directory"):
        load_processor(missing)
