"""Rows in tokens with the processors of real model classes; what belongs to an answer in several chat templates."""

import base64
import copy
import gc
import io
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import NAMES
from tokenizers import pre_tokenizers

from cwdpo.data import encode
from cwdpo.data.collate import RowDataset
from cwdpo.data.encode import ChatTemplate, EncodedMemory, Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError, DataError
from cwdpo.models.parts import ModelLimits

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
    short = Encoder(processor_of("qwen2_vl"), limits=ModelLimits(longest - 1))
    message = (
        rf"f:1: the prompt with the answer 'A red circle\.' has {longest} tokens \({free.prompt_tokens - 6} text, "
        rf"6 image, {len(free.answers[1])} answer\), more than the {longest - 1} allowed\. Nothing is truncated"
    )
    with pytest.raises(DataError, match=message) as found:
        short.encode(row, answers)
    assert "raise data.max_length" not in str(found.value)  # the model has no more positions
    lower = Encoder(processor_of("qwen2_vl"), max_length=longest - 1, limits=ModelLimits(longest))
    with pytest.raises(DataError, match=r"truncated: raise data\.max_length, shorten"):
        lower.encode(row, answers)
    assert short.measure(row, answers).answers == free.answers
    with pytest.raises(DataError, match="f:1: the prompt has"):
        Encoder(processor_of("qwen2_vl"), max_length=5).encode(row)
    with pytest.raises(ConfigError, match=r"max_length is 9, but the model has only 8 positions\. Write 8"):
        Encoder(processor_of("qwen2_vl"), max_length=9, limits=ModelLimits(8))


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


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image_pad|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (  # plain strings, no end token
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{% endif %}{% endfor %}"
)
GEMMA = (  # trims, and refuses a system turn
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content[0].text | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
SPACED = (  # a space before the end token
    "{% for m in messages %}{{ m.role }}: {{ m.content }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINKING = CHATML.replace(
    "{% if m.content is string %}",
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{% if m.content is string %}",
)
ROW = Row((Message("user", ("What?",)),), "A cat.", source="f:1")


@pytest.fixture
def with_template(processor_of: Callable[[str], Any]) -> Callable[[str | None], Any]:
    """A tiny qwen3_vl processor with another chat template."""

    def change(template: str | None) -> Any:
        processor = copy.copy(processor_of("qwen3_vl"))
        processor.chat_template = template
        return processor

    return change


def answer(processor: Any, text: str, row: Row = ROW) -> str:
    """The answer's tokens as text again."""
    encoded = Encoder(processor).encode(row, [text])
    return processor.tokenizer.decode(encoded.answers[0])


@pytest.mark.parametrize(
    ("template", "prompt", "plain", "padded"),
    [
        (CHATML, "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n", "A.<|im_end|>", " A.\n<|im_end|>"),
        (LLAMA, "[INST] What? [/INST]", " A.<|im_end|>", "  A.\n<|im_end|>"),
        (GEMMA, "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>model\n", "A.<|im_end|>", "A.<|im_end|>"),
        (SPACED, "user: What? <|im_end|>assistant:", " A. <|im_end|>", "  A.\n <|im_end|>"),
        (
            THINKING,
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "A.<|im_end|>",
            " A.\n<|im_end|>",
        ),
    ],
    ids=["chatml", "llama", "gemma", "spaced", "thinking"],
)
def test_answer_and_prompt(
    template: str, prompt: str, plain: str, padded: str, with_template: Callable[[str], Any]
) -> None:
    processor = with_template(template)
    encoded = Encoder(processor).encode(ROW)
    assert processor.tokenizer.decode(encoded.prompt["input_ids"][0]) == prompt
    assert answer(processor, "A.") == plain
    assert answer(processor, " A.\n") == padded


def test_the_end_token_is_the_templates_own_and_one_token(with_template: Callable[[str], Any]) -> None:
    processor = with_template(CHATML.replace("<|im_end|>", "<|vision_pad|>"))
    end = processor.tokenizer.convert_tokens_to_ids("<|vision_pad|>")
    (ids,) = Encoder(processor).encode(ROW, ["A."]).answers
    assert ids.count(end) == 1
    assert ids[-1] == end != processor.tokenizer.eos_token_id


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip()))
@pytest.mark.parametrize("name", ["qwen2_vl", "llava"])
def test_any_text_survives(name: str, text: str, encoder_of: Callable[[str], Encoder], processor_of: Any) -> None:
    encoder = encoder_of(name)
    if any(token in text for token in encoder.template.control_tokens):
        with pytest.raises(DataError, match="control token"):
            encoder.encode(ROW, [text])
        return
    encoded = encoder.encode(ROW, [text])
    tokenizer = processor_of(name).tokenizer
    lead, end = {"qwen2_vl": ("", "<|im_end|>"), "llava": (" ", "</s>")}[name]
    assert tokenizer.decode(encoded.answers[0]) == lead + text + end


def test_tokens_are_those_of_the_joint_text_where_they_can_be(with_template: Callable[[str], Any]) -> None:
    processor = with_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    ids_of = processor.tokenizer
    row = Row((Message("user", ("a s",)),), "quare", source="f:1")
    encoded = Encoder(processor).encode(row, [" circle", "quare"])
    assert encoded.joined == [True, False]  # " square" is one token
    prompt = encoded.prompt["input_ids"][0].tolist()
    assert prompt + encoded.answers[0][:-1] == ids_of("a s circle")["input_ids"]
    assert encoded.answers[1] == [*ids_of("quare")["input_ids"], ids_of.eos_token_id]
    assert len(ids_of("a square")["input_ids"]) < len(prompt + encoded.answers[1][:-1])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML + "{% if not add_generation_prompt %}{% else %}?{% endif %}", "in another way when an answer follows"),
        (CHATML.replace("<|im_start|>{{ m.role }}", "{{ messages | length }}{{ m.role }}"), "in another way"),
        (CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"), "in another way"),
        (LLAMA.replace("{{ m.content }}{% endif %}", "{% endif %}"), "does not write the assistant's answer once"),
        (
            LLAMA.replace(" {{ m.content }}{%", " {{ m.content }}{{ m.content }}{%"),
            "does not write the assistant's answer",
        ),
    ],
    ids=["generation", "length", "dropped", "silent", "twice"],
)
def test_templates_that_break_the_prompt(template: str, message: str, with_template: Callable[[str], Any]) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Encoder(with_template(template)).encode(ROW, ["A."])
    assert str(caught.value).startswith("f:1: ")


def test_templates_that_rewrite_the_answer(with_template: Callable[[str], Any]) -> None:
    processor = with_template(LLAMA.replace(" {{ m.content }}{%", " {{ m.content.split('</think>')[-1] }}{%"))
    assert answer(processor, "A.") == " A.<|im_end|>"
    with pytest.raises(DataError, match=r"f:1: the chat template rewrites the answer 'so</think>A\.'"):
        answer(processor, "so</think>A.")


def test_templates_that_refuse(with_template: Callable[[str], Any]) -> None:
    row = Row((Message("system", ("Be brief.",)), *ROW.prompt), "A.", source="f:1")
    with pytest.raises(DataError, match=r"f:1: the chat template refuses this conversation: no system role"):
        answer(with_template(GEMMA), "A.", row)


def test_a_model_reads_and_writes_no_token_beyond_its_tables(processor_of: Callable[[str], Any]) -> None:
    processor = processor_of("llava")
    row, size = PROMPTS["image"], len(processor.tokenizer)
    largest = max(Encoder(processor).encode(row, ["A."]).answers[0])
    image, words = processor.image_token_id, processor.tokenizer("USER What?", add_special_tokens=False)["input_ids"]
    assert image < max(words)
    fits = Encoder(processor, limits=ModelLimits(read=size, written=largest + 1))
    fits.encode(row, ["A."])
    assert fits.can_exceed_model
    assert not Encoder(processor, limits=ModelLimits(read=size, written=size)).can_exceed_model
    short, said = Encoder(processor, limits=ModelLimits(read=size, written=largest)), f"output head has {largest} rows"
    with pytest.raises(DataError, match=f"f:1: an answer has .* id {largest}, .* {said}, .* {size} tokens"):
        short.encode(row, ["A."])
    with pytest.raises(DataError, match=said):
        short.check_tokens(replace(row, chosen="A."))
    with pytest.raises(DataError, match=f"the prompt has the token .* embedding has {max(words)} rows"):
        Encoder(processor, limits=ModelLimits(read=max(words))).encode(row)


def test_an_image_token_needs_no_embedding(processor_of: Callable[[str], Any]) -> None:
    """Some models have none for it: its place is the image's."""
    processor = copy.deepcopy(processor_of("llava"))
    size = len(processor.tokenizer)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    processor.chat_template = processor.chat_template.replace("<image>", "<picture>")
    processor.image_token, processor.image_token_id = "<picture>", size
    encoder = Encoder(processor, limits=ModelLimits(read=size, written=size))
    assert not encoder.can_exceed_model
    assert encoder.encode(PROMPTS["image"], ["A."]).prompt["input_ids"].max() == size


def test_no_template_and_useless_ones(with_template: Callable[[str | None], Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no chat template\. Copy chat_template\.jinja"):
        ChatTemplate(with_template(None))
    with pytest.raises(ConfigError, match="leaves out what the user says"):
        ChatTemplate(with_template("hello"))
    row = Row((Message("user", (ImageSlot(), "What?")),), "A.", images=(b"",), source="f:1")
    with pytest.raises(DataError, match="takes text alone and has no place"):
        answer(with_template(LLAMA), "A.", row)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_control_tokens_in_text(token: str, encoder_of: Callable[[str], Encoder]) -> None:
    with pytest.raises(DataError, match=r"f:1: an answer holds '<\|\w+\|>', which the tokenizer reads as a control"):
        encoder_of("qwen2_vl").encode(ROW, [f"A {token} cat."])
    row = Row((Message("user", (f"What {token}?",)),), "A.", source="f:1")
    with pytest.raises(DataError, match=r"f:1: a user turn of the prompt holds"):
        encoder_of("qwen2_vl").encode(row, ["A."])


class Counting(Encoder):
    """Counts what is really encoded."""

    prompts = answers = 0

    def _prompt(self, row: Row, text: str) -> dict[str, torch.Tensor]:
        self.prompts += 1
        return super()._prompt(row, text)

    def _answer(self, prompt: str, text: str, ended: bool) -> tuple[list[int], bool]:
        self.answers += 1
        return super()._answer(prompt, text, ended)


def test_what_is_remembered_is_encoded_once_and_is_the_same(processor_of: Callable[[str], Any], tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "a.png")
    rows = [
        Row((Message("user", (SLOT, "What?")),), "a", images=(image,), source="f:1")
        for image in (tmp_path / "a.png", IMAGE, IMAGE.resize((64, 32)))
    ]
    plain, remembers = Encoder(processor_of("llava")), Counting(processor_of("llava"), memory=EncodedMemory())
    for _ in range(2):
        for row in rows:
            one, other = plain.encode(row, ANSWERS[:2]), remembers.encode(row, ANSWERS[:2])
            assert one.answers == other.answers
            assert one.prompt.keys() == other.prompt.keys()
            assert all(torch.equal(one.prompt[name], other.prompt[name]) for name in one.prompt)
    assert (remembers.prompts, remembers.answers) == (3, 6)
    remembers.encode(rows[0], ANSWERS[1:3])
    assert (remembers.prompts, remembers.answers) == (3, 7)


def records() -> list[dict[str, Any]]:
    """With encoded pictures of noise, of some kilobytes, and one of one colour, which is small."""
    found = []
    for number in range(4):
        file = io.BytesIO()
        noise = bytes(40 * 48 * 3) if number == 0 else random.Random(number).randbytes(40 * 48 * 3)
        Image.frombytes("RGB", (40, 48), noise).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": None}
        found.append({"images": [image], "prompt": "What?", "chosen": "A cat.", "rejected": "A dog."})
    return found


def table(records: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(records).cast_column("images", datasets.List(datasets.Image()))


@pytest.mark.parametrize(
    "form",
    [
        table,
        lambda records: table(records).with_transform(lambda batch: batch),
        lambda records: [
            {**record, "images": [base64.b64encode(record["images"][0]["bytes"]).decode()]} for record in records
        ],
    ],
    ids=["table", "decoded images", "base64"],
)
def test_images_that_each_access_makes_anew_are_remembered(form: Any, processor_of: Callable[[str], Any]) -> None:
    rows, plain = RowDataset(form(records())), Encoder(processor_of("llava"))
    encoder = Counting(processor_of("llava"), memory=EncodedMemory())
    for _ in range(3):
        for index in range(4):
            row = rows[index][1]
            one, other = plain.encode(row, ANSWERS[:1]), encoder.encode(row, ANSWERS[:1])
            assert all(torch.equal(one.prompt[name], other.prompt[name]) for name in one.prompt)
    assert (encoder.prompts, encoder.answers) == (4, 4)


def test_what_is_remembered_keeps_no_image(processor_of: Callable[[str], Any]) -> None:
    encoder, image = Encoder(processor_of("llava"), memory=EncodedMemory()), IMAGE.copy()
    encoder.encode(Row((Message("user", (SLOT, "What?")),), "a", images=(image,), source="f:1"))
    gone = weakref.ref(image)
    del image
    gc.collect()
    assert gone() is None


def test_a_full_memory_keeps_what_came_first(processor_of: Callable[[str], Any]) -> None:
    rows = [Row((Message("user", (SLOT, word)),), "a", images=(IMAGE,), source="f:1") for word in ("one", "two")]
    size = sum(tensor.nbytes for tensor in Encoder(processor_of("llava")).encode(rows[0]).prompt.values())
    encoder = Counting(processor_of("llava"), memory=EncodedMemory(size + 1500))
    for _ in range(3):
        for row in rows:
            encoder.encode(row, ["x"])
    assert (encoder.prompts, encoder.answers) == (1 + 3, 1 + 3)


def test_a_sixteenth_of_the_free_memory_is_taken_by_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "free_memory", lambda: 16 * 1_200_000_000)

    def room(worker: object = None) -> int:
        monkeypatch.setattr(encode, "get_worker_info", lambda: worker)
        memory, taken = EncodedMemory(), 0
        while memory._takes(100_000_000):
            taken += 1
        return taken

    assert (room(), room(worker=object())) == (12, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert (room(), room(worker=object())) == (6, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "400")
    assert (room(), room(worker=object())) == (2, 2)


def test_nothing_is_remembered_unless_asked(processor_of: Callable[[str], Any]) -> None:
    encoder, row = Counting(processor_of("llava")), PROMPTS["image"]
    encoder.encode(row)
    encoder.encode(row)
    assert encoder.prompts == 2
    with encoder.remembering():
        encoder.encode(row)
        encoder.encode(row)
    encoder.encode(row)
    assert encoder.prompts == 4
