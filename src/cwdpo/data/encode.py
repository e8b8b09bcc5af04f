"""Turn a row into what a model reads: the processor's tensors of its prompt, and the token ids of its answers."""

import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from cwdpo.data.images import open_image
from cwdpo.data.rows import Message, Row
from cwdpo.errors import ConfigError, DataError

_PROBE = "cwdpo-probe"
_PRINTED_PART = re.compile(r"""['"]type['"]\s*:\s*['"]text['"]""")
_REFUSALS = (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError)
"""What a template raises for a conversation that it does not take."""


@dataclass(frozen=True)
class EncodedRow:
    """One prompt and some answers to it, in tokens."""

    prompt: dict[str, Tensor]
    """What the processor returned for this prompt alone, with its images: batch dimension 1, nothing padded or cut."""

    answers: list[list[int]]
    """Token ids of each answer through its end token, nothing of the prompt."""

    image_tokens: int
    """How many of the prompt's tokens stand for images."""

    joined: list[bool]
    """For each answer, whether its tokens are those it has when prompt and answer are tokenised as one text. Where
    not, the tokenizer would merge across the border, and the answer was tokenised by itself, as it is in generation."""

    unknown: list[int]
    """For each answer, how many of its tokens are the tokenizer's unknown token."""

    @property
    def prompt_tokens(self) -> int:
        """Image tokens included."""
        return int(self.prompt["input_ids"].shape[-1])


class Frame(NamedTuple):
    """What the template writes around any answer to one prompt."""

    prompt: str
    """All text before an answer, with what the template itself puts in front of every answer (an empty
    ``<think></think>``, say)."""

    lead: str
    """White space between prompt and answer. The model must produce it, so it is counted to the answer."""

    tail: str
    """All text after an answer."""


_Key: TypeAlias = tuple[Hashable, ...]
_ENTRY = 500  # bytes of an entry's Python objects, about


class EncodedMemory:
    """Prompts and answers as they were encoded, for the next pass over the same rows: reference pass and epochs.

    It keeps what comes first, up to a number of bytes. An epoch visits each row once, so that a memory which gives up
    its oldest entry would give up each just before it is wanted.
    """

    def __init__(self, max_bytes: int = 256_000_000) -> None:
        self._room = max_bytes
        self._prompts: dict[_Key, tuple[Row, Frame, dict[str, Tensor]]] = {}
        """With its row, which holds the images: an image that is none of a file's is known by where it lies."""
        self._answers: dict[tuple[_Key, str], tuple[list[int], bool]] = {}

    def prompt(
        self, row: Row, encode: Callable[[], tuple[Frame, dict[str, Tensor]]]
    ) -> tuple[_Key, Frame, dict[str, Tensor]]:
        """A row's prompt, encoded here if it is not known."""
        images = (image if isinstance(image, Path) else id(image) for image in row.images)
        key = (row.prompt, repr(row.template_kwargs), *images)
        if key in self._prompts:
            return key, *self._prompts[key][1:]
        frame, tensors = encode()
        if self._takes(sum(tensor.nbytes for tensor in tensors.values()) + _ENTRY):
            self._prompts[key] = (row, frame, tensors)
        return key, frame, tensors

    def answer(self, key: _Key, text: str, encode: Callable[[str], tuple[list[int], bool]]) -> tuple[list[int], bool]:
        """The tokens of an answer to a prompt, and whether they are those of the joint text."""
        found = self._answers.get((key, text))
        if found is None:
            found = encode(text)
            if key in self._prompts and self._takes(8 * len(found[0]) + _ENTRY):
                self._answers[key, text] = found
        return found

    def _takes(self, size: int) -> bool:
        if size > self._room:
            return False
        self._room -= size
        return True


class Encoder:
    """Encode rows with a processor and its chat template. Nothing is ever truncated: what is too long is an error."""

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int | None = None,
        model_max_length: int | None = None,
        add_special_tokens: bool | None = None,
        memory: EncodedMemory | None = None,
    ) -> None:
        """Check that the processor has a chat template, an end and an image token; else a ``ConfigError``.

        Args:
            processor: of a vision-language model.
            max_length: most tokens in prompt and answer together; None leaves it to the model.
            model_max_length: most positions the model has; None if it has no limit.
            add_special_tokens: whether the tokenizer puts its own first token before the prompt. None does as
                transformers' ``apply_chat_template`` does in generation: yes, unless the template writes it.
            memory: where to keep what was encoded; of an encoder with the same processor. None keeps nothing.
        """
        self.template = ChatTemplate(processor)
        self._processor = processor
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._add_special_tokens = add_special_tokens
        self._image_ids = torch.tensor(_image_ids(processor))
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end token. Set `eos_token` in its tokenizer_config.json.")
        if max_length is not None and model_max_length is not None and max_length > model_max_length:
            raise ConfigError(
                f"data.max_length is {max_length}, but the model has only {model_max_length} positions. "
                f"Write {model_max_length} or less, or leave it out."
            )
        self.limit = max_length if max_length is not None else model_max_length
        """Most tokens in prompt and answer together, or None."""

        self._memory = memory or EncodedMemory(max_bytes=0)
        # a tokenizer that ends every text with a token would end the prompt before the answer
        if self.tokenizer("a", add_special_tokens=True)["input_ids"][-1:] != self._ids("a")[-1:]:
            raise ConfigError(
                "the tokenizer puts a token after every text, which would stand between prompt and answer. "
                "Set `add_eos_token` to false in its tokenizer_config.json."
            )

    def encode(self, row: Row, answers: Sequence[str] = ()) -> EncodedRow:
        """Encode a row's prompt, opening its images once, and some answers; a ``DataError`` names a row that fails."""
        encoded = self.measure(row, answers)
        self.check_length(row, answers, encoded)
        return encoded

    def measure(self, row: Row, answers: Sequence[str] = ()) -> EncodedRow:
        """As :meth:`encode`, without the limit on the length."""

        def of_prompt() -> tuple[Frame, dict[str, Tensor]]:
            frame = self.template.frame(row)
            return frame, self._prompt(row, frame.prompt)

        key, frame, prompt = self._memory.prompt(row, of_prompt)
        image_tokens = int(torch.isin(prompt["input_ids"], self._image_ids).sum())
        if image_tokens < len(row.images) or (image_tokens and not row.images):
            raise DataError(
                f"{row.source}: the row has {len(row.images)} images, but its prompt has {image_tokens} image tokens "
                "after processing. Use the chat template and the processor that the model was published with."
            )

        def of_answer(text: str) -> tuple[list[int], bool]:
            return self._answer(frame.prompt, *self.template.answer(row, frame, text))

        pairs = [self._memory.answer(key, text, of_answer) for text in answers]
        unknown = self.tokenizer.unk_token_id
        return EncodedRow(
            prompt=prompt,
            answers=[ids for ids, _ in pairs],
            image_tokens=image_tokens,
            joined=[joined for _, joined in pairs],
            unknown=[0 if unknown is None else ids[:-1].count(unknown) for ids, _ in pairs],
        )

    def check_length(self, row: Row, answers: Sequence[str], encoded: EncodedRow) -> None:
        """Refuse a row that would not fit, with its longest answer and the counts."""
        lengths = [len(ids) for ids in encoded.answers]
        count = max(lengths, default=0)
        total = encoded.prompt_tokens + count
        if self.limit is not None and total > self.limit:
            of = f" with the answer {answers[lengths.index(count)][:40]!r}" if answers else ""
            text = encoded.prompt_tokens - encoded.image_tokens
            raise DataError(
                f"{row.source}: the prompt{of} has {total} tokens ({text} text, {encoded.image_tokens} image, "
                f"{count} answer), more than the {self.limit} allowed. Nothing is "
                "truncated: raise data.max_length, shorten the row, make its images smaller, or take it out."
            )

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While open, all is remembered, whatever its size; for a few rows that are asked about several times."""
        before = self._memory
        self._memory = EncodedMemory(sys.maxsize)
        try:
            yield
        finally:
            self._memory = before

    def _prompt(self, row: Row, text: str) -> dict[str, Tensor]:
        images = [open_image(image, source=row.source) for image in row.images]
        bos, special = self.tokenizer.bos_token, self._add_special_tokens
        if special is None:
            special = not (bos and text.startswith(bos))
        name = type(self._processor).__name__
        try:
            found: Mapping[str, Any] = self._processor(
                text=[text],
                images=[images] if images else None,
                return_tensors="pt",
                text_kwargs={"add_special_tokens": special, "padding": False, "truncation": False},
            )
        except (ValueError, TypeError, IndexError, RuntimeError, OSError) as problem:
            # processors often refuse extreme sizes
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            of = f" with images of {sizes} pixels" if images else ""
            raise DataError(f"{row.source}: {name} refuses the prompt{of}: {problem}") from problem
        for entry, value in found.items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"{name} returns `{entry}` as {type(value).__name__} and not as a tensor, so it cannot be batched. "
                    "Use a processor class that transformers itself provides."
                )
        return dict(found)

    def _answer(self, prompt: str, text: str, ended: bool) -> tuple[list[int], bool]:
        """Token ids of an answer's text, and whether they are those of the joint text."""
        before, whole = self._ids(prompt), self._ids(prompt + text)
        joined = whole[: len(before)] == before
        ids = whole[len(before) :] if joined else self._ids(text)
        return ids if ended else [*ids, self.tokenizer.eos_token_id], joined

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, padding=False, truncation=False)["input_ids"]
        return ids


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
        if row.has_reasoning and "reasoning_content" not in str(self._processor.chat_template):
            raise DataError(
                f"{row.source}: a message has `reasoning_content`, which this model's chat template does not take. "
                "Take the key out, or write the reasoning into the text."
            )
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
            return self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer is None, **row.template_kwargs
            )
        except _REFUSALS as problem:
            raise DataError(
                f"{row.source}: the chat template refuses this conversation: {problem}. Give it the roles it expects."
            ) from problem

    def _message(self, message: Message, row: Row) -> dict[str, Any]:
        texts = [part for part in message.parts if isinstance(part, str)]
        reasoning = {} if message.reasoning is None else {"reasoning_content": message.reasoning}
        if self._takes_parts:
            parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
            return {"role": message.role, "content": parts, **reasoning}
        if len(texts) != len(message.parts):
            raise DataError(
                f"{row.source}: the row has images, but the chat template takes text alone and has no place for them. "
                "Use the template the model was published with."
            )
        return {"role": message.role, "content": "".join(texts), **reasoning}

    def _shows(self, content: str | list[dict[str, str]]) -> bool:
        """Whether the template writes this content of a user's turn, and not its Python form."""
        message: dict[str, Any] = {"role": "user", "content": content}
        try:
            text = self._processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except _REFUSALS:
            return False
        return _PROBE in text and not _PRINTED_PART.search(text)


def _control_tokens(processor: ProcessorMixin) -> list[str]:
    """Every text that the tokenizer takes for a special token, longest first."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    found = {str(token) for token in tokenizer.all_special_tokens}
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {str(getattr(processor, f"{kind}_token", None) or "") for kind in ("image", "video", "audio")}
    return sorted(found - {""}, key=lambda token: (-len(token), token))


def _image_ids(processor: ProcessorMixin) -> list[int]:
    """Ids of the tokens that stand for images after processing."""
    found = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    ids = [int(token) for token in found if token is not None]
    if not ids:
        raise ConfigError(
            f"{type(processor).__name__} does not say which token stands for an image (`image_token_id`), so a lost "
            "image would go unnoticed. Use a processor of a vision-language model that transformers provides."
        )
    return ids


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
