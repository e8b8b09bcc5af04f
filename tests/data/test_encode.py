"""Rows in tokens, with the processors of real model classes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import NAMES
from tokenizers import pre_tokenizers

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError, DataError

IMAGE = Image.new("RGB", (40, 48), "red")
SLOT = ImageSlot()
FRAMES = {  # what stands before and after an answer
    "qwen2_vl": ("", "<|im_end|>"),
    "qwen2_5_vl": ("", "<|im_end|>"),
    "qwen3_vl": ("", "<|im_end|>"),
    "llava": (" ", "</s>"),
    "idefics3": (" ", "<end_of_utterance>"),
}
PROMPTS = {
    "text": Row((Message("user", ("What?",)),), "a", source="f:1"),
    "image": Row((Message("user", (SLOT, "What?")),), "a", images=(IMAGE,), source="f:1"),
    "two": Row((Message("user", (SLOT, "or", SLOT, "?")),), "a", images=(IMAGE, IMAGE.resize((64, 32))), source="f:1"),
    "turns": Row(
        (
            Message("system", ("Be brief.",)),
            Message("user", (SLOT, "What?")),
            Message("assistant", ("A cat.",)),
            Message("user", ("And?",)),
        ),
        "a",
        images=(IMAGE,),
        source="f:1",
    ),
}
ANSWERS = ["A red circle.", "x", "two\nlines", "naïve 猫 🐱"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_answer_and_its_end(
    name: str, prompt: str, encoder_of: Callable[[str], Encoder], processor_of: Callable[[str], Any]
) -> None:
    encoded = encoder_of(name).encode(PROMPTS[prompt], ANSWERS)
    tokenizer = processor_of(name).tokenizer
    lead, end = FRAMES[name]
    assert [tokenizer.decode(ids) for ids in encoded.answers] == [lead + text + end for text in ANSWERS]
    assert all(ids[-1] == tokenizer.convert_tokens_to_ids(end) for ids in encoded.answers)
    assert encoded.joined == [True] * len(ANSWERS)
    assert encoded.unknown == [0] * len(ANSWERS)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_what_transformers_makes_for_generation(
    name: str, prompt: str, encoder_of: Callable[[str], Encoder], processor_of: Callable[[str], Any]
) -> None:
    row, processor = PROMPTS[prompt], processor_of(name)
    images = iter(row.images)
    chat = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": next(images)}
                for part in message.parts
            ],
        }
        for message in row.prompt
    ]
    expected = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = encoder_of(name).encode(row).prompt
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("name", NAMES)
def test_image_tokens_are_counted(
    name: str, encoder_of: Callable[[str], Encoder], processor_of: Callable[[str], Any]
) -> None:
    counts = {key: encoder_of(name).encode(row).image_tokens for key, row in PROMPTS.items()}
    one = {"qwen2_vl": 6, "qwen2_5_vl": 6, "qwen3_vl": 6, "llava": 16, "idefics3": 4}[name]
    two = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 14, "llava": 32, "idefics3": 8}[name]
    assert counts == {"text": 0, "image": one, "two": two, "turns": one}


def test_the_first_token_can_be_left_out(processor_of: Callable[[str], Any]) -> None:
    processor = processor_of("llava")
    with_first = Encoder(processor).encode(PROMPTS["text"]).prompt["input_ids"][0]
    without = Encoder(processor, add_special_tokens=False).encode(PROMPTS["text"]).prompt["input_ids"][0]
    assert with_first[0] == processor.tokenizer.bos_token_id
    assert with_first[1:].tolist() == without.tolist()


def test_length_limit(processor_of: Callable[[str], Any], encoder_of: Callable[[str], Encoder]) -> None:
    row, answers = PROMPTS["image"], ["x", "A red circle."]
    free = encoder_of("qwen2_vl").encode(row, answers)
    longest = free.prompt_tokens + len(free.answers[1])
    exact = Encoder(processor_of("qwen2_vl"), max_length=longest)
    assert exact.encode(row, answers).answers == free.answers
    short = Encoder(processor_of("qwen2_vl"), model_max_length=longest - 1)
    message = (
        rf"f:1: the prompt with the answer 'A red circle\.' has {longest} tokens \({free.prompt_tokens - 6} text, "
        rf"6 image, {len(free.answers[1])} answer\), more than the {longest - 1} allowed\. Nothing is truncated"
    )
    with pytest.raises(DataError, match=message):
        short.encode(row, answers)
    assert short.measure(row, answers).answers == free.answers
    with pytest.raises(DataError, match="f:1: the prompt has"):
        Encoder(processor_of("qwen2_vl"), max_length=5).encode(row)
    with pytest.raises(ConfigError, match=r"max_length is 9, but the model has only 8 positions\. Write 8"):
        Encoder(processor_of("qwen2_vl"), max_length=9, model_max_length=8)


def test_a_tokenizer_set_to_truncate_does_not(processor_of: Callable[[str], Any], tiny: Callable[[str], Path]) -> None:
    processor = copy.deepcopy(processor_of("qwen2_vl"))
    processor.tokenizer("x", truncation=True, max_length=4, padding="max_length")
    encoded = Encoder(processor).encode(PROMPTS["image"], ["A red circle."])
    whole = Encoder(processor_of("qwen2_vl")).encode(PROMPTS["image"], ["A red circle."])
    assert encoded.answers == whole.answers
    assert torch.equal(encoded.prompt["input_ids"], whole.prompt["input_ids"])


def test_lost_images_are_noticed(processor_of: Callable[[str], Any]) -> None:
    for name in NAMES:
        processor = copy.copy(processor_of(name))
        processor.chat_template = processor_of("qwen2_vl").chat_template.replace("<|image_pad|>", "")
        with pytest.raises(DataError, match=r"^f:1: "):
            Encoder(processor).encode(PROMPTS["image"], ["x"])


def test_a_processor_that_cuts_the_prompt_is_noticed(processor_of: Callable[[str], Any]) -> None:
    processor = copy.copy(processor_of("llava"))

    class Cutting(type(processor)):
        def __call__(self, **options: Any) -> Any:
            found = super().__call__(**options)
            return {**found, "input_ids": found["input_ids"][:, :4]}

    processor.__class__ = Cutting
    assert Encoder(processor).encode(PROMPTS["text"]).prompt_tokens == 4
    with pytest.raises(DataError, match="f:1: the row has 2 images, but its prompt has 0 image tokens"):
        Encoder(processor).encode(PROMPTS["two"])


def test_a_tokenizer_that_begins_every_text_with_a_space(processor_of: Callable[[str], Any]) -> None:
    processor = copy.deepcopy(processor_of("llava"))
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    processor.chat_template = processor_of("qwen3_vl").chat_template.replace("<|im_end|>", "</s>")
    assert processor.tokenizer.decode(processor.tokenizer("A.", add_special_tokens=False)["input_ids"]) == " A."
    encoded = Encoder(processor).encode(PROMPTS["text"], ["A."])
    assert processor.tokenizer.decode(encoded.answers[0]) == "A.</s>"


def test_what_the_processor_refuses_names_the_row(encoder_of: Callable[[str], Encoder]) -> None:
    row = Row(PROMPTS["image"].prompt, "a", images=(Image.new("RGB", (2000, 2)),), source="f:1")
    with pytest.raises(DataError, match="f:1: Qwen2VLProcessor refuses the prompt with images of 2000 x 2 pixels"):
        encoder_of("qwen2_vl").encode(row)


def test_processors_that_lack_something(processor_of: Callable[[str], Any]) -> None:
    processor = copy.deepcopy(processor_of("qwen2_vl"))
    processor.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end token"):
        Encoder(processor)
    processor = copy.copy(processor_of("qwen2_vl"))
    processor.image_token_id = None
    with pytest.raises(ConfigError, match="does not say which token stands for an image"):
        Encoder(processor)
