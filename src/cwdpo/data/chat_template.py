"""A processor's chat template, asked for prompts and answers as text; and what it reads beside a conversation.

A prompt must be the same whenever it is made: in the reference pass and in training, before midnight and after, in a
run that was interrupted. Of what transformers lets a template read beside its conversation, one thing is not: the
clock (``strftime_now``). It stands still here, see :func:`prompts_at`. Templates that draw at random are refused.
"""

import json
import logging
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

from cwdpo.data.rows import Message, Row, join_reasoning, split_reasoning
from cwdpo.errors import ConfigError, DataError, shortened

logger = logging.getLogger(__name__)

_PROBE = "cwdpo-probe"
_THOUGHT = "cwdpo-thought"
_PRINTED_PART = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""What a template raises for a conversation that it does not take."""


_OPENING = re.compile(r"<think>\s*\Z")
_TAGS = ("<think>", "</think>")


def _closing(opening: str) -> str:
    """How a think block ends that begins so: on lines of its own, as Qwen and DeepSeek write it, or in line (GLM)."""
    return "\n</think>\n\n" if opening.endswith("\n") else "</think>\n"


class Frame(NamedTuple):
    """What the template writes around any answer to one prompt."""

    prompt: str
    """All text before an answer, with what the template itself puts in front of every answer (an empty
    ``<think></think>``, say)."""

    lead: str
    """White space between prompt and answer. The model must produce it, so it is counted to the answer."""

    tail: str
    """All text after an answer."""

    thinks: bool = False
    """Whether answers have a think block, be it an empty one. Part of it may be the prompt's, see ``opening``."""

    drops: bool = False
    """Whether the template drops think blocks, so that they are written here."""

    @property
    def opening(self) -> str:
        """The begin of a think block with which the prompt ends, and the answer goes on; empty where there is none."""
        found = _OPENING.search(self.prompt) if self.thinks else None
        return found.group() if found else ""


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

        template = _default_template(processor)
        self._names = {text for _, kind, text in jinja2.Environment().lex(template) if kind == "name"}
        self._template = with_fixed_clock(template, self.time)
        self.control_tokens = _control_tokens(processor)
        """Texts that the tokenizer turns into tokens with a meaning of their own."""

        self._control = re.compile("|".join(map(re.escape, self.control_tokens)) or r"(?!)")
        self._takes_parts = self._shows([{"type": "text", "text": _PROBE}])
        if not self._takes_parts and not self._shows(_PROBE):
            raise ConfigError(
                "the chat template leaves out what the user says, given as text or as parts. "
                "Use the chat template that the model was published with."
            )
        self._warned: set[str] = set()
        self._takes_reasoning = self._shows_reasoning()

    def frame(self, row: Row) -> Frame:
        """Render a row's prompt, which must be the same when an answer follows.

        If one of the row's answers begins with a think block, all go on from where the model would begin to think.
        """
        self._check_reasoning_key(row)
        for name in self.unread_kwargs(row):
            if name not in self._warned:
                self._warned.add(name)
                logger.warning("%s: the chat template does not read `%s`, here and in other rows", row.source, name)
        for message in row.prompt:
            for part in message.parts:
                if isinstance(part, str):
                    self.check_plain(part, f"a {message.role} turn of the prompt", row.source)
        prompt, thinks = self._render(row), row.thinks
        whole = self._render(row, _PROBE, reasoning=_THOUGHT if thinks else None)
        opening = _OPENING.search(prompt)
        drops = thinks and _THOUGHT not in whole
        if not whole.startswith(prompt) and opening is not None:
            # the model always thinks, and the template keeps no thoughts of turns that are over
            drops, before = True, prompt[: opening.start()]
        else:
            before = prompt
        if not whole.startswith(before):
            raise DataError(
                f"{row.source}: the chat template writes the prompt in another way when an answer follows, so the "
                "model would be trained on prompts that it never meets. Use the template the model was published with."
            )
        lead, found, tail = whole[len(before) :].rpartition(_PROBE)
        if not found or _PROBE in lead:
            raise DataError(
                f"{row.source}: the chat template does not write the assistant's answer once after the prompt. "
                "Use the template the model was published with."
            )
        if thinks:
            return Frame(prompt, lead if drops and not lead.strip() else "", tail, thinks=True, drops=drops)
        if drops and opening is not None:
            return Frame(prompt + _closing(opening.group()), "", tail, drops=True)
        return Frame(prompt + lead, "", tail) if lead.strip() else Frame(prompt, lead, tail)

    def answer(self, row: Row, frame: Frame, text: str) -> tuple[str, bool]:
        """Text of an answer as the template writes it through the token that ends the turn, and whether there is one.

        Only the space around the answer, and around the reasoning that it begins with, may change. What follows that
        token, or else the answer, is left out.
        """
        self.check_plain(text, "an answer", row.source)
        reasoning, rest = split_reasoning(text) if frame.thinks else (None, text)
        if frame.drops:
            body = rest
            if frame.opening:
                body = (reasoning or "").strip() + _closing(frame.opening) + rest.strip()
            elif reasoning is not None:
                body = text.strip()
        else:
            body = self._body(row, frame, text, reasoning, rest)
        space = len(frame.tail) - len(frame.tail.lstrip())
        stop = self._control.match(frame.tail, space)
        return frame.lead + body + (frame.tail[: stop.end()] if stop else ""), stop is not None

    def _body(self, row: Row, frame: Frame, text: str, reasoning: str | None, rest: str) -> str:
        """What the template makes of an answer's text."""
        if frame.thinks and self._takes_reasoning:
            whole = self._render(row, rest, reasoning=reasoning or "")
        else:
            whole = self._render(row, text)
        before, end = frame.prompt + frame.lead, len(whole) - len(frame.tail)
        body = whole[len(before) : end]
        same = body.strip() == text.strip()
        if frame.thinks:
            thought, said = split_reasoning(frame.opening + body)
            same = ((thought or "").strip(), said.strip()) == ((reasoning or "").strip(), rest.strip())
        if not whole.startswith(before) or whole[end:] != frame.tail or not same:
            raise DataError(
                f"{row.source}: the chat template rewrites the answer {_short(text)}. Take out what it acts on "
                "(`</think>`, say), or use the template the model was published with."
            )
        return body

    def unread_kwargs(self, row: Row) -> list[str]:
        """The row's ``chat_template_kwargs`` that the template does not read, so that they have no effect."""
        return [name for name in row.template_kwargs if name not in self._names]

    def _check_reasoning_key(self, row: Row) -> None:
        if row.has_reasoning and not self._takes_reasoning and "think" not in self._template:
            raise DataError(
                f"{row.source}: a message has `reasoning_content`, which this model's chat template does not take. "
                "Take the key out, or write the reasoning into the text."
            )

    def check_plain(self, text: str, what: str, source: str) -> None:
        """Refuse text that the tokenizer would read as a control token, such as an end of turn or an image."""
        if found := self._control.search(text):
            raise DataError(
                f"{source}: {what} holds {found.group()!r}, which the tokenizer reads as a control token and not as "
                f"text: {_short(text)}. Take it out, or write it in another way."
            )

    def _render(self, row: Row, answer: str | None = None, *, reasoning: str | None = None) -> str:
        """The prompt, ready for an answer, or with one and the reasoning before it."""
        messages = [self._message(message, row) for message in row.prompt]
        if answer is not None:
            if reasoning is not None and not self._takes_reasoning:
                answer, reasoning = join_reasoning(reasoning, answer), None
            messages.append(self._assistant(answer, reasoning))
        kwargs = {name: value for name, value in row.template_kwargs.items() if name in self._names}
        try:
            return self._apply(messages, add_generation_prompt=answer is None, **kwargs)
        except _REFUSALS as problem:
            raise DataError(
                f"{row.source}: the chat template refuses this conversation: {problem}. Give it the roles it expects."
            ) from problem

    def _apply(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **kwargs: Any) -> str:
        return self._processor.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )

    def _message(self, message: Message, row: Row) -> dict[str, Any]:
        """A turn of the prompt. A think block at the begin of an assistant's text is reasoning as well."""
        parts, reasoning = message.parts, message.reasoning
        if message.role == "assistant" and reasoning is None and self._takes_reasoning and isinstance(parts[0], str):
            reasoning, text = split_reasoning(parts[0])
            parts = (text, *parts[1:])
        thought = {} if reasoning is None else {"reasoning_content": reasoning}
        if self._takes_parts:
            content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
            return {"role": message.role, "content": content, **thought}
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) != len(parts):
            raise DataError(
                f"{row.source}: the row has images, but the chat template takes text alone and has no place for them. "
                "Use the template the model was published with."
            )
        return {"role": message.role, "content": "".join(texts), **thought}

    def _assistant(self, text: str, reasoning: str | None) -> dict[str, Any]:
        content = [{"type": "text", "text": text}] if self._takes_parts else text
        thought = {} if reasoning is None else {"reasoning_content": reasoning}
        return {"role": "assistant", "content": content, **thought}

    def _shows_reasoning(self) -> bool:
        """Whether the template writes an answer's ``reasoning_content``, once."""
        content = [{"type": "text", "text": _PROBE}] if self._takes_parts else _PROBE
        messages = [{"role": "user", "content": content}, self._assistant(_PROBE, _THOUGHT)]
        try:
            return self._apply(messages, add_generation_prompt=False).count(_THOUGHT) == 1
        except _REFUSALS:
            return False

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
    found -= {"", *_TAGS}  # models write these themselves
    return sorted(found, key=lambda token: (-len(token), token))


def _short(text: str) -> str:
    return repr(shortened(text, 60))
