"""Chat templates of several kinds: what belongs to the answer, and which templates cannot be trained with."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.data.encode import ChatTemplate, Encoder
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError, DataError

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
