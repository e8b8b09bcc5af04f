"""Answers that begin with reasoning, under templates that behave like those of Qwen3, Qwen3.5, GLM and DeepSeek-R1."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Message, Row, join_reasoning
from cwdpo.errors import DataError

_TEXT = (
    "{% macro text(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p.text }}{% endfor %}"
    "{% endif %}{% endmacro %}"
)

_SPLIT = (
    "{% set said = text(m.content) %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1] %}{% set said = said.split('</think>')[-1] %}"
    "{% endif %}{% set thought, said = thought.strip(), said.strip() %}"
)
"""Reasoning from its key, or from the text."""

QWEN = (
    _TEXT + "{% for m in messages %}{% if m.role == 'assistant' %}" + _SPLIT + "<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ said }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ text(m.content) }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\nOPENS{% endif %}"
)
_CLOSED = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
QWEN3 = QWEN.replace("OPENS", _CLOSED + "{% endif %}")
QWEN35 = QWEN.replace("OPENS", _CLOSED + "{% else %}<think>\n{% endif %}")
GLM = (
    _TEXT + "{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
    "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}"
    "<think>{{ thought.strip() if loop.last }}</think>\n{% endif %}{{ text(m.content).strip() }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Reads the key alone: a think block in the text would stand beside the empty one."""
R1 = (
    _TEXT + "{% for m in messages %}<|{{ m.role }}|>"
    "{{ text(m.content).split('</think>')[-1].strip() }}{{ '<|im_end|>' if m.role == 'assistant' }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
PLAIN = (
    _TEXT + "{% for m in messages %}<|{{ m.role }}|>{{ text(m.content) }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

THOUGHT = join_reasoning("Warm, so red.", "Red.")
USER, ANSWER = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n", "Warm, so red.\n</think>\n\nRed.<|im_end|>"
CASES = {
    # template, values for it, and of a row with reasoning: its prompt, an answer with and one without
    "qwen3": (QWEN3, {}, USER, "<think>\n" + ANSWER, "<think>\n\n</think>\n\nCat.<|im_end|>"),
    "qwen3.5": (QWEN35, {}, USER + "<think>\n", ANSWER, "\n</think>\n\nCat.<|im_end|>"),
    "qwen3.5, asked": (QWEN35, {"enable_thinking": True}, USER + "<think>\n", ANSWER, "\n</think>\n\nCat.<|im_end|>"),
    "glm": (
        GLM,
        {},
        "<|user|>\nWhat?<|assistant|>\n",
        "<think>Warm, so red.</think>\nRed.</s>",
        "<think></think>\nCat.</s>",
    ),
    "r1": (R1, {}, "<|user|>What?<|assistant|><think>\n", ANSWER, "\n</think>\n\nCat.<|im_end|>"),
    "plain": (PLAIN, {}, "<|user|>What?<|im_end|><|assistant|>", f"{THOUGHT}<|im_end|>", "Cat.<|im_end|>"),
}
WITHOUT = {
    # of a row without any reasoning: its prompt, and an answer
    "qwen3": USER + "<think>\n\n</think>\n\n",
    "qwen3.5": USER + "<think>\n\n</think>\n\n",
    "glm": "<|user|>\nWhat?<|assistant|>\n<think></think>\n",
    "r1": "<|user|>What?<|assistant|><think>\n\n</think>\n\n",
    "plain": "<|user|>What?<|im_end|><|assistant|>",
}
ROW = Row((Message("user", ("What?",)),), THOUGHT, ("Cat.",), source="f:1")


@pytest.fixture
def encode(processor_of: Callable[[str], Any]) -> Callable[..., tuple[str, list[str], str]]:
    """A row's prompt, the answers, and the opening, as text."""

    def call(template: str, row: Row, *answers: str) -> tuple[str, list[str], str]:
        processor = copy.deepcopy(processor_of("llava"))
        processor.chat_template = template
        processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
        encoded = Encoder(processor, add_special_tokens=False).encode(row, answers)
        decode = processor.tokenizer.decode
        return decode(encoded.prompt["input_ids"][0]), [decode(ids) for ids in encoded.answers], encoded.opening

    return call


Encode = Callable[..., tuple[str, list[str], str]]


@pytest.mark.parametrize("name", CASES)
def test_a_row_with_reasoning_goes_on_where_the_model_begins_to_think(encode: Encode, name: str) -> None:
    template, values, prompt, thinking, plain = CASES[name]
    row = replace(ROW, template_kwargs=values)
    opening = "<think>\n" if prompt.endswith("<think>\n") else ""
    assert encode(template, row, THOUGHT, "Cat.") == (prompt, [thinking, plain], opening)
    assert encode(template, replace(row, has_reasoning=name != "plain"), THOUGHT)[1] == [thinking]


@pytest.mark.parametrize("name", WITHOUT)
def test_without_reasoning_the_prompt_ends_the_think_block(encode: Encode, name: str) -> None:
    row = replace(ROW, chosen="Red.")
    end = "</s>" if name == "glm" else "<|im_end|>"
    assert encode(CASES[name][0], row, "Red.", "Cat.") == (WITHOUT[name], [f"Red.{end}", f"Cat.{end}"], "")


def test_a_row_chooses_what_the_template_offers(encode: Encode) -> None:
    row = replace(ROW, chosen="Red.", template_kwargs={"enable_thinking": False})
    assert encode(QWEN35, row, "Red.")[0] == USER + "<think>\n\n</think>\n\n"
    with pytest.raises(DataError, match="writes the prompt in another way when an answer follows"):
        encode(QWEN35, replace(row, chosen=THOUGHT), THOUGHT)


def test_a_template_that_would_write_the_block_twice_is_no_way_around(encode: Encode) -> None:
    twice = GLM.replace("m.reasoning_content if m.reasoning_content is string else ''", "''")
    with pytest.raises(DataError, match=r"f:1: the chat template rewrites the answer '<think>"):
        encode(twice, ROW, THOUGHT)


def test_reasoning_of_earlier_turns_goes_to_the_template_as_its_own_key(encode: Encode) -> None:
    turns = (ROW.prompt[0], Message("assistant", (join_reasoning("Hm.", "Looking."),)), Message("user", ("And?",)))
    prompt, _, _ = encode(GLM, replace(ROW, prompt=turns, chosen="Red."), "Red.")
    assert "<|assistant|>\n<think></think>\nLooking.<|user|>" in prompt
    keyed = (turns[0], Message("assistant", ("Looking.",), "Hm."), turns[2])
    assert encode(GLM, replace(ROW, prompt=keyed, chosen="Red."), "Red.")[0] == prompt


def test_a_key_that_no_template_reads_is_an_error(encode: Encode) -> None:
    with pytest.raises(DataError, match="f:1: a message has `reasoning_content`, which this model's chat template"):
        encode(PLAIN, replace(ROW, has_reasoning=True), THOUGHT)


def test_values_that_the_template_does_not_read_are_named_once(
    encode: Encode, caplog: pytest.LogCaptureFixture
) -> None:
    row = replace(ROW, chosen="Red.", template_kwargs={"thinking_budget": 5})
    assert encode(QWEN35, row, "Red.") == encode(QWEN35, replace(row, template_kwargs={}), "Red.")
    assert caplog.messages == ["f:1: the chat template does not read `thinking_budget`, here and in other rows"]
