"""How a processor's chat template frames a prompt and an answer, and what of it belongs to the answer."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import ProcessorMixin

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError, DataError

_PROBE = "cwdpo-probe"
_PRINTED_PART = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")


class Frame(NamedTuple):
    """What the template writes around any answer to one prompt."""

    prompt: str
    """All text before an answer, with what the template itself puts in front of every answer (an empty
    ``<think></think>``, say)."""

    lead: str
    """White space between prompt and answer. The model must produce it, so it is counted to the answer."""

    tail: str
    """All text after an answer."""


class ChatTemplate:
    """A processor's chat template, asked three questions: the prompt, the answer's text, and where its turn ends."""

    def __init__(self, processor: ProcessorMixin) -> None:
        """Find out what the template takes.

        Raises:
            ConfigError: there is no template, or it shows nothing of what the user says.
        """
        if not getattr(processor, "chat_template", None):
            raise ConfigError(
                f"the processor ({type(processor).__name__}) has no chat template. Copy chat_template.jinja of the "
                "instruction-tuned model into the checkpoint, or set processor.chat_template."
            )
        self._processor = processor
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
        """Render a row's prompt.

        Raises:
            DataError: the template refuses the prompt, rewrites it when an answer follows, or drops the answer.
        """
        self._check_text(row)
        messages = [self._message(message, row) for message in row.prompt]
        prompt = self._render(messages, row, add_generation_prompt=True)
        whole = self._render([*messages, self._answer(_PROBE)], row)
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
        """Text of an answer as the template writes it after the frame's prompt.

        Returns:
            The text through the token that ends the turn, and whether the template writes such a token at all. What it
            writes after that token, or where there is none after the answer, is left out.

        Raises:
            DataError: the answer holds a control token, or the template changes more of it than the space around it.
        """
        self.check_plain(text, "an answer", row.source)
        messages = [self._message(message, row) for message in row.prompt]
        whole = self._render([*messages, self._answer(text)], row)
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

    def _check_text(self, row: Row) -> None:
        for message in row.prompt:
            for part in message.parts:
                if isinstance(part, str):
                    self.check_plain(part, f"a {message.role} turn of the prompt", row.source)

    def _message(self, message: Message, row: Row) -> dict[str, Any]:
        """A message as the template takes it."""
        if self._takes_parts:
            parts = [
                {"type": "image"} if isinstance(p, ImageSlot) else {"type": "text", "text": p} for p in message.parts
            ]
            return {"role": message.role, "content": parts}
        texts = [part for part in message.parts if isinstance(part, str)]
        if len(texts) != len(message.parts):
            raise DataError(
                f"{row.source}: the row has images, but the chat template takes text alone and has no place for them. "
                "Use the template the model was published with."
            )
        return {"role": message.role, "content": "".join(texts)}

    def _answer(self, text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": [{"type": "text", "text": text}] if self._takes_parts else text}

    def _shows(self, content: Any) -> bool:
        """Whether the template writes this content of a user's turn, and not its Python form."""
        try:
            text = self._apply([{"role": "user", "content": content}], add_generation_prompt=True)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
            return False
        return _PROBE in text and not _PRINTED_PART.search(text)

    def _render(self, messages: Sequence[dict[str, Any]], row: Row, *, add_generation_prompt: bool = False) -> str:
        try:
            return self._apply(messages, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as problem:
            raise DataError(
                f"{row.source}: the chat template refuses this conversation: {problem}. Give it the roles it expects."
            ) from problem

    def _apply(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        text: str = self._processor.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text


def _control_tokens(processor: Any) -> list[str]:
    """Every text that the tokenizer takes for a special token, longest first."""
    tokenizer = processor.tokenizer
    found = {str(token) for token in tokenizer.all_special_tokens}
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {str(getattr(processor, f"{kind}_token", None) or "") for kind in ("image", "video", "audio")}
    return sorted(found - {""}, key=lambda token: (-len(token), token))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
