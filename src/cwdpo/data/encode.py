"""Turn a row into what a model reads: the processor's tensors of its prompt, and the token ids of its answers."""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from cwdpo.data.chat_template import ChatTemplate, Frame
from cwdpo.data.images import image_identity, open_image
from cwdpo.data.rows import Row, StoredImage
from cwdpo.errors import ConfigError, DataError
from cwdpo.memory import free_memory, processes_here
from cwdpo.models.parts import ModelLimits

NO_LIMITS = ModelLimits()


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

    opening: str
    """The begin of a think block with which the prompt ends, and which every answer goes on from; mostly empty."""

    unknown: list[int]
    """For each answer, how many of its tokens are the tokenizer's unknown token."""

    @property
    def prompt_tokens(self) -> int:
        """Image tokens included."""
        return int(self.prompt["input_ids"].shape[-1])


_LEAST = 256_000_000
"""Bytes of a memory of encoded rows on a machine where little is free, and of one in each worker of a dataloader."""

_SHARE = 16
"""One byte in so many that are free, for the encoded rows of all processes together."""

_Key: TypeAlias = tuple[Hashable, ...]
_Known: TypeAlias = tuple[Frame, dict[str, Tensor]]
_ENTRY = 500  # bytes of an entry's Python objects, about


class EncodedMemory:
    """Prompts and answers as they were encoded, for the next pass over the same rows: reference pass and epochs.

    It keeps what comes first, up to a number of bytes. An epoch visits each row once, so that a memory which gives up
    its oldest entry would give up each just before it is wanted.
    """

    def __init__(self, max_bytes: int | None = None, *, behind: "EncodedMemory | None" = None) -> None:
        """None takes a sixteenth of what is free, but at least 256 MB, and not more than that in workers. Prompts are
        also looked up in a memory ``behind`` this one."""
        self._behind = behind
        self._room = max(_LEAST, free_memory() // _SHARE // processes_here()) if max_bytes is None else max_bytes
        self._beyond_workers = max(0, self._room - _LEAST) if max_bytes is None else 0
        self._prompts: dict[_Key, _Known] = {}
        self._answers: dict[tuple[_Key, str], tuple[list[int], bool]] = {}

    def prompt(
        self, row: Row, time: datetime, encode: Callable[[], tuple[Frame, dict[str, Tensor]]]
    ) -> tuple[_Key, Frame, dict[str, Tensor]]:
        """A row's prompt as its template writes it at a time, encoded here if it is not known."""
        key = _prompt_key(row, time)
        known = self._find(key)
        if known is not None:
            self._prompts[key] = known
            return key, *known
        frame, tensors = encode()
        if self._takes(sum(tensor.nbytes for tensor in tensors.values()) + _ENTRY):
            self._prompts[key] = (frame, tensors)
        return key, frame, tensors

    def answer(self, key: _Key, text: str, encode: Callable[[str], tuple[list[int], bool]]) -> tuple[list[int], bool]:
        """The tokens of an answer to a prompt, and whether they are those of the joint text."""
        found = self._answers.get((key, text))
        if found is None:
            found = encode(text)
            if key in self._prompts and self._takes(8 * len(found[0]) + _ENTRY):
                self._answers[key, text] = found
        return found

    def knows(self, row: Row, time: datetime) -> bool:
        """Whether a row's prompt is here, or behind."""
        return self._find(_prompt_key(row, time)) is not None

    def _find(self, key: _Key) -> "_Known | None":
        found = self._prompts.get(key)
        return found if found is not None or self._behind is None else self._behind._find(key)

    def _takes(self, size: int) -> bool:
        # each worker has a memory of its own, and how many workers there are is not known here
        if size > self._room - (self._beyond_workers if get_worker_info() else 0):
            return False
        self._room -= size
        return True


def _prompt_key(row: Row, time: datetime) -> _Key:
    # what lies in a table does not change, so its place is enough, and nothing is read
    images = (
        image if isinstance(image, StoredImage) else image_identity(image, source=row.source) for image in row.images
    )
    return (time, row.prompt, repr(row.template_kwargs), row.thinks, *images)


class Encoder:
    """Encode rows with a processor and its chat template. Nothing is ever truncated: what is too long is an error."""

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int | None = None,
        limits: ModelLimits = NO_LIMITS,
        add_special_tokens: bool | None = None,
        memory: EncodedMemory | None = None,
    ) -> None:
        """Check that the processor has a chat template, an end and an image token; else a ``ConfigError``.

        Args:
            processor: of a vision-language model.
            max_length: most tokens in prompt and answer together; None leaves it to the model.
            limits: of the model.
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
        positions = limits.positions
        if max_length is not None and positions is not None and max_length > positions:
            raise ConfigError(
                f"data.max_length is {max_length}, but the model has only {positions} positions. "
                f"Write {positions} or less, or leave it out.",
                setting="data.max_length",
            )
        self._limits = limits
        self.limit = max_length if max_length is not None else positions
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

        key, frame, prompt = self._memory.prompt(row, self.template.time, lambda: self.encode_prompt(row))
        image_tokens = int(torch.isin(prompt["input_ids"], self._image_ids).sum())
        if image_tokens < len(row.images) or (image_tokens and not row.images):
            raise DataError(
                f"{row.source}: the row has {len(row.images)} images, but its prompt has {image_tokens} image tokens "
                "after processing. Use the chat template and the processor that the model was published with."
            )

        def of_answer(text: str) -> tuple[list[int], bool]:
            return self._answer(frame.prompt, *self.template.answer(row, frame, text))

        pairs = [self._memory.answer(key, text, of_answer) for text in answers]
        ids = prompt["input_ids"]
        self._check_ids(row, ids[~torch.isin(ids, self._image_ids)].tolist(), [ids for ids, _ in pairs])
        unknown = self.tokenizer.unk_token_id
        return EncodedRow(
            prompt=prompt,
            answers=[ids for ids, _ in pairs],
            image_tokens=image_tokens,
            joined=[joined for _, joined in pairs],
            opening=frame.opening,
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
            most = self._limits.positions
            raised = "raise data.max_length, " if most is None or total <= most else ""
            raise DataError(
                f"{row.source}: the prompt{of} has {total} tokens ({text} text, {encoded.image_tokens} image, "
                f"{count} answer), more than the {self.limit} allowed. Nothing is "
                f"truncated: {raised}shorten the row, make its images smaller, or take it out."
            )

    def check_tokens(self, row: Row) -> None:
        """Refuse a row whose text has tokens that the model lacks, without its images; nothing to do for a tokenizer
        that has no such tokens, which :attr:`can_exceed_model` says."""
        frame = self.template.frame(row)
        answers = [row.chosen, *row.rejected, *([] if row.gentle is None else [row.gentle])]
        ids = [self._answer(frame.prompt, *self.template.answer(row, frame, text))[0] for text in answers]
        images = set(self._image_ids.tolist())
        self._check_ids(row, [token for token in self._ids(frame.prompt) if token not in images], ids)

    @cached_property
    def can_exceed_model(self) -> bool:
        """Whether the tokenizer has text tokens that the model has no embedding, or no output, for."""
        largest = max(set(self.tokenizer.get_vocab().values()) - set(self._image_ids.tolist()), default=0)
        return any(size is not None and largest >= size for size in (self._limits.read, self._limits.written))

    def _check_ids(self, row: Row, prompt: Sequence[int], answers: Iterable[Sequence[int]]) -> None:
        """The image tokens are left out of the ``prompt``: models that have no embedding for them do not read one."""
        parts = [("the prompt", prompt), *(("an answer", ids) for ids in answers)]
        for what, ids in parts:
            sizes = {"embedding": self._limits.read}
            if what == "an answer":
                sizes["output head"] = self._limits.written
            token = max(ids, default=0)
            for name, size in sizes.items():
                if size is not None and token >= size:
                    raise DataError(
                        f"{row.source}: {what} has the token {self.tokenizer.convert_ids_to_tokens(token)!r} with the "
                        f"id {token:,}, but the model's {name} has {size:,} rows, and its tokenizer "
                        f"{len(self.tokenizer):,} tokens. Take the text out, use the tokenizer that the model was "
                        f"published with, or save the model after model.resize_token_embeddings({token + 1})."
                    )

    def encode_prompt(self, row: Row) -> tuple[Frame, dict[str, Tensor]]:
        """What the template writes around answers to a prompt, and the prompt's tensors: all that opens images."""
        frame = self.template.frame(row)
        return frame, self._prompt(row, frame.prompt)

    def knows(self, row: Row) -> bool:
        """Whether a row's prompt is remembered, so that nothing of it is encoded again."""
        return self._memory.knows(row, self.template.time)

    @contextmanager
    def remembering(self, known: Iterable[tuple[Row, tuple[Frame, dict[str, Tensor]]]] = ()) -> Iterator[None]:
        """While open, all is remembered, whatever its size; for a few rows that are asked about several times. Of the
        rows that are ``known``, what :meth:`encode_prompt` gives."""
        before = self._memory
        self._memory = EncodedMemory(sys.maxsize, behind=before)
        for row, encoded in known:
            self._memory.prompt(row, self.template.time, partial(_as_it_is, encoded))
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


def _as_it_is(known: tuple[Frame, dict[str, Tensor]]) -> tuple[Frame, dict[str, Tensor]]:
    return known


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
