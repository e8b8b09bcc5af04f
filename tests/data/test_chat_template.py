"""What a chat template reads beside a conversation: the clock, which stands still, and nothing drawn at random."""

import copy
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from cwdpo.data.chat_template import prompts_at, with_fixed_clock
from cwdpo.data.encode import EncodedMemory, Encoder
from cwdpo.data.rows import Message, Row
from cwdpo.errors import ConfigError

NIGHT = datetime(2026, 2, 7, 23, 59, 58)
ROW = Row((Message("user", ("What?",)),), "A.", source="f:1")
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
  Today Date: {{ date_string }}
"""


def render(template: str, **variables: Any) -> str:
    chat = [{"role": "user", "content": "What?"}]
    (text,) = render_jinja_template([chat], chat_template=template, bos_token="<s>", **variables)[0]
    return str(text)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LLAMA, "<s>  Today Date: 07 Feb 2026"),
        ("{{ strftime_now('%-d.%m.%y %H:%M:%S, 100%%, day %j') }}", "7.02.26 23:59:58, 100%, day 038"),
        ("{% macro day() %}{{ strftime_now('%A') }}{% endmacro %}\n  {{ day() }}", "  Saturday"),
        ("{% for m in messages %}{{ strftime_now('%%d') }}{{ m.content }}{% endfor %}", "%dWhat?"),
        ("  {{ '%d' }} strftime_now\n", "  %d strftime_now"),
    ],
)
def test_the_clock_stands_still(template: str, text: str) -> None:
    assert render(with_fixed_clock(template, NIGHT)) == text


def test_a_template_without_a_clock_is_left_as_it_is() -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %} strftime_now | random"
    assert with_fixed_clock(plain, NIGHT) == plain


def test_what_the_conversation_gives_still_counts() -> None:
    assert render(with_fixed_clock(LLAMA, NIGHT), date_string="1 May") == "<s>  Today Date: 1 May"


def test_a_format_that_is_put_together_is_refused() -> None:
    with pytest.raises(Exception, match="the format of strftime_now is not written out"):
        render(with_fixed_clock("{{ strftime_now('%' ~ 'd') }}", NIGHT))


@pytest.mark.parametrize("template", ["{{ ['a', 'b'] |  random }}", "{% if lipsum(1) %}a{% endif %}"])
def test_templates_that_draw_at_random_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="draws at random"):
        with_fixed_clock(template, NIGHT)


@pytest.mark.slow
def test_encoders_have_the_time_they_are_made_in(processor_of: Callable[[str], Any]) -> None:
    processor = copy.deepcopy(processor_of("llava"))
    processor.chat_template = "{{ strftime_now('%d %b. ') }}" + processor.chat_template
    memory = EncodedMemory()

    def prompt(encoder: Encoder) -> str:
        return str(processor.tokenizer.decode(encoder.encode(ROW).prompt["input_ids"][0]))

    with prompts_at(NIGHT):
        during = Encoder(processor, memory=memory)
    assert prompt(during).startswith("<s>07 Feb. USER")
    assert prompt(Encoder(processor, memory=memory)) != prompt(during)  # not what the other one remembers
    first = Encoder(processor).template.time
    assert Encoder(processor).template.time == first  # one time for all that is made outside
