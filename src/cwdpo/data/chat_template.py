"""A processor's chat template, asked for prompts and answers as text; and what it reads beside a conversation.

A prompt must be the same whenever it is made: in the reference pass and in training, before midnight and after, in a
run that was interrupted. Of what transformers lets a template read beside its conversation, one thing is not: the
clock (``strftime_now``). It stands still here, see :func:`prompts_at`. Templates that draw at random are refused.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from cwdpo.data.rows import Message, Row
from cwdpo.errors import ConfigError, DataError

_PROBE = "cwdpo-probe"
_PRINTED_PART = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""What a template raises for a conversation that it does not take."""


class Frame(NamedTuple):
    """What the template writes around any answer to one prompt."""

    prompt: str
    """All text before an answer, with what the template itself puts in front of every answer (an empty
    ``<think></think>``, say)."""

    lead: str
    """White space between prompt and answer. The model must produce it, so it is counted to the answer."""

    tail: str
    """All text after an answer."""


_clock: ContextVar[datetime | None] = ContextVar("cwdpo_prompts_at", default=None)


@contextmanager
def prompts_at(time: datetime) -> Iterator[None]:
    """While open, new encoders print this time where a chat template prints the date (Llama 3.2's does).

    A run keeps its own, so that it makes the same prompts on whatever day it goes on. Outside, the time is that of the
    first prompt in this process.
    """
    token = _clock.set(time)
    try:
        yield
    finally:
        _clock.reset(token)


@cache
def _first_prompt() -> datetime:
    return datetime.now()


_CLOCK = "strftime_now"
_DIRECTIVE = re.compile(r"%[-_0^#]*[A-Za-z%]")
_NO_LITERAL = f"the format of {_CLOCK} is not written out in the chat template"


def with_fixed_clock(template: str, time: datetime) -> str:
    """A template in whose place of ``strftime_now`` stands a macro that knows one time; others are left as they are.

    Variables of a template are data alone in transformers, so a function of ours cannot be one.

    Example:
        >>> template = with_fixed_clock("{{ strftime_now('%d %b') }}", datetime(2026, 11, 27))
        >>> jinja2.Template(template, trim_blocks=True).render()  # as transformers renders them
        '27 Nov'
    """
    tokens = [(kind, text) for _, kind, text in jinja2.Environment().lex(template)]
    names = {text for kind, text in tokens if kind == "name"}
    code = [text for kind, text in tokens if kind != "whitespace"]
    if "lipsum" in names or ("|", "random") in pairwise(code):
        raise ConfigError(
            "the chat template draws at random, so that a prompt would not be the same twice. Use a template that "
            "writes the same text for the same conversation."
        )
    if _CLOCK not in names:
        return template
    printed = "format"
    found = {each for kind, text in tokens if kind == "string" for each in _DIRECTIVE.findall(text)}
    for directive in sorted(found - {"%%"}):
        printed += f" | replace({json.dumps(directive)}, {json.dumps(time.strftime(directive))})"
    return (
        f"{{%- macro {_CLOCK}(format) -%}}{{%- set printed = {printed} -%}}"
        f'{{%- if "%" in printed | replace("%%", "") -%}}{{{{- raise_exception({json.dumps(_NO_LITERAL)}) -}}}}'
        '{%- endif -%}{{- printed | replace("%%", "%") -}}{%- endmacro %}\n' + template
    )


class ChatTemplate:
    """A processor's chat template, asked three questions: the prompt, the answer's text, and where its turn ends.

    No template, or one that shows nothing of what the user says, is a ``ConfigError``; a row that the template refuses,
    rewrites or drops parts of is a ``DataError``.
    """

    def __init__(self, processor: ProcessorMixin) -> None:
        if not getattr(processor, "chat_template", None):
            raise ConfigError(
                f"the processor ({type(processor).__name__}) has no chat template. Copy chat_template.jinja of the "
                "instruction-tuned model into the checkpoint, or set processor.chat_template."
            )
        self._processor = processor
        self.time = _clock.get() or _first_prompt()
        """What it prints where it prints the date."""

        self._template = with_fixed_clock(_default_template(processor), self.time)
        self.control_tokens = _control_tokens(processor)
        """Texts that the tokenizer turns into tokens with a meaning of their own."""

        self._control = re.compile("|".join(map(re.escape, self.control_tokens)) or r"(?!)")
        self._takes_parts = self._shows([{"type": "text", "text": _PROBE}])
        if not self._takes_parts and not self._shows(_PROBE):
            raise ConfigError(
                "the chat template leaves out what the user says, given as text or as parts. "
                "Use the chat template that the model was published with."
            )

    def frame(self, row: Row) -> Frame:
        """Render a row's prompt, which must be the same when an answer follows."""
        for message in row.prompt:
            for part in message.parts:
                if isinstance(part, str):
                    self.check_plain(part, f"a {message.role} turn of the prompt", row.source)
        prompt, whole = self._render(row), self._render(row, _PROBE)
        if not whole.startswith(prompt):
            raise DataError(
                f"{row.source}: the chat template writes the prompt in another way when an answer follows, so the "
                "model would be trained on prompts that it never meets. Use the template the model was published with."
            )
        lead, found, tail = whole[len(prompt) :].partition(_PROBE)
        if not found or _PROBE in tail:
            raise DataError(
                f"{row.source}: the chat template does not write the assistant's answer once after the prompt. "
                "Use the template the model was published with."
            )
        return Frame(prompt + lead, "", tail) if lead.strip() else Frame(prompt, lead, tail)

    def answer(self, row: Row, frame: Frame, text: str) -> tuple[str, bool]:
        """Text of an answer as the template writes it through the token that ends the turn, and whether there is one.

        Only the space around the answer may change. What follows that token, or else the answer, is left out.
        """
        self.check_plain(text, "an answer", row.source)
        whole = self._render(row, text)
        before, end = frame.prompt + frame.lead, len(whole) - len(frame.tail)
        body = whole[len(before) : end]
        if not whole.startswith(before) or whole[end:] != frame.tail or body.strip() != text.strip():
            raise DataError(
                f"{row.source}: the chat template rewrites the answer {_short(text)}. Take out what it acts on "
                "(`</think>`, say), or use the template the model was published with."
            )
        space = len(frame.tail) - len(frame.tail.lstrip())
        stop = self._control.match(frame.tail, space)
        return frame.lead + body + (frame.tail[: stop.end()] if stop else ""), stop is not None

    def check_plain(self, text: str, what: str, source: str) -> None:
        """Refuse text that the tokenizer would read as a control token, such as an end of turn or an image."""
        if found := self._control.search(text):
            raise DataError(
                f"{source}: {what} holds {found.group()!r}, which the tokenizer reads as a control token and not as "
                f"text: {_short(text)}. Take it out, or write it in another way."
            )

    def _render(self, row: Row, answer: str | None = None) -> str:
        """The prompt, ready for an answer, or with one."""
        messages = [self._message(message, row) for message in row.prompt]
        if answer is not None:
            content = [{"type": "text", "text": answer}] if self._takes_parts else answer
            messages.append({"role": "assistant", "content": content})
        try:
            return self._apply(messages, add_generation_prompt=answer is None)
        except _REFUSALS as problem:
            raise DataError(
                f"{row.source}: the chat template refuses this conversation: {problem}. Give it the roles it expects."
            ) from problem

    def _apply(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        return self._processor.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _message(self, message: Message, row: Row) -> dict[str, Any]:
        texts = [part for part in message.parts if isinstance(part, str)]
        if self._takes_parts:
            parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
            return {"role": message.role, "content": parts}
        if len(texts) != len(message.parts):
            raise DataError(
                f"{row.source}: the row has images, but the chat template takes text alone and has no place for them. "
                "Use the template the model was published with."
            )
        return {"role": message.role, "content": "".join(texts)}

    def _shows(self, content: str | list[dict[str, str]]) -> bool:
        """Whether the template writes this content of a user's turn, and not its Python form."""
        message: dict[str, Any] = {"role": "user", "content": content}
        try:
            text = self._apply([message], add_generation_prompt=True)
        except _REFUSALS:
            return False
        return _PROBE in text and not _PRINTED_PART.search(text)


def _default_template(processor: ProcessorMixin) -> str:
    """The template that transformers takes where none is named."""
    template: Any = processor.chat_template
    if not isinstance(template, dict):
        return str(template)
    if "default" not in template:
        raise ConfigError(
            f"the processor has the chat templates {', '.join(template)}, and none is called `default`. Set "
            "processor.chat_template to one of them."
        )
    return str(template["default"])


def _control_tokens(processor: ProcessorMixin) -> list[str]:
    """Every text that the tokenizer takes for a special token, longest first."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    found = {str(token) for token in tokenizer.all_special_tokens}
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {str(getattr(processor, f"{kind}_token", None) or "") for kind in ("image", "video", "audio")}
    return sorted(found - {""}, key=lambda token: (-len(token), token))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
