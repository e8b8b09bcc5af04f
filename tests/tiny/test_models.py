"""The tiny checkpoints are what they claim to be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

from cwdpo.models.loading import load_processor
from tiny import build, families

Tiny = Callable[[str], Path]
SPECS = families.SPECS | families.MORE_SPECS
WITH_TEMPLATE = [name for name in SPECS if name not in ("mistral3", "paligemma")]


@pytest.mark.parametrize("name", SPECS)
def test_class_size_and_ids(name: str, tiny: Tiny) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(tiny(name), output_loading_info=True)
    assert type(model) is getattr(transformers, SPECS[name].model_class)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert 60_000 < model.num_parameters() < 160_000
    tokenizer, family = AutoTokenizer.from_pretrained(tiny(name)), SPECS[name].family
    stop = set(model.generation_config.eos_token_id)
    assert tokenizer.eos_token_id in stop | {model.config.get_text_config().eos_token_id}
    assert tokenizer.convert_tokens_to_ids(family.turn_end or family.eos) in stop
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == model.config.get_text_config().pad_token_id
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings or name == "mllama"
    text = "Any text: žluťoučký 🐈, 100 %\n"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_conversation_with_an_image(name: str, tiny: Tiny) -> None:
    processor = load_processor(tiny(name))
    model = AutoModelForImageTextToText.from_pretrained(tiny(name))
    ask = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    rules = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}
    prompt = processor.apply_chat_template([rules, ask], add_generation_prompt=True)
    whole = processor.apply_chat_template([rules, ask, answer])
    assert whole.startswith(prompt)
    assert whole[len(prompt) :].strip().removesuffix(SPECS[name].family.turn_end) == "A cat."
    assert "Be brief." in prompt
    batch = processor(images=[Image.new("RGB", (40, 30), "red")], text=prompt, return_tensors="pt")
    image_token = getattr(model.config, "image_token_id", None) or model.config.image_token_index
    assert (batch["input_ids"] == image_token).sum() == {"llava": 16, "llava_onevision": 10, "mllama": 1}.get(name, 4)
    assert model.generate(**batch, max_new_tokens=2, do_sample=False).shape[1] > batch["input_ids"].shape[1]


def test_same_seed_same_weights_and_global_state_untouched(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    one, two = (build("qwen3_vl", tmp_path / str(i)) / "model.safetensors" for i in range(2))
    assert one.read_bytes() == two.read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state)
