"""Turn a row into what a model reads: the processor's tensors of its prompt, and the token ids of its answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from cwdpo.data.images import open_image
from cwdpo.data.rows import Row
from cwdpo.data.template import ChatTemplate
from cwdpo.errors import ConfigError, DataError


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
        """Length of the prompt, image tokens included."""
        return int(self.prompt["input_ids"].shape[-1])


class Encoder:
    """Encode rows with a processor and its chat template. Nothing is ever truncated: what is too long is an error."""

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int | None = None,
        model_max_length: int | None = None,
        add_special_tokens: bool | None = None,
    ) -> None:
        """Check that the processor can do it.

        Args:
            processor: of a vision-language model, with a chat template.
            max_length: most tokens in prompt and answer together; None leaves it to the model.
            model_max_length: most positions the model has; None if it has no limit.
            add_special_tokens: whether the tokenizer puts its own first token before the prompt. None does as
                transformers' ``apply_chat_template`` does in generation: yes, unless the template writes it.

        Raises:
            ConfigError: the processor lacks a chat template, an end token or an image token, or the limits disagree.
        """
        self.template = ChatTemplate(processor)
        self._processor: Any = processor
        self.tokenizer: Any = self._processor.tokenizer
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

        self._memory: dict[tuple[Any, ...], dict[str, Tensor]] | None = None
        _check_no_suffix(self.tokenizer)

    def encode(self, row: Row, answers: Sequence[str] = ()) -> EncodedRow:
        """Encode a row's prompt, opening its images once, and some answers to it.

        Raises:
            DataError: names the row: an image cannot be read, the template or the processor refuses the row, a text
                holds control tokens, or the prompt with an answer is longer than the limit.
        """
        encoded = self.measure(row, answers)
        self.check_length(row, answers, encoded)
        return encoded

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While open, prompts are encoded once; for a few rows that are asked about several times in a row."""
        self._memory = {}
        try:
            yield
        finally:
            self._memory = None

    def measure(self, row: Row, answers: Sequence[str] = ()) -> EncodedRow:
        """As :meth:`encode`, without the limit on the length."""
        frame = self.template.frame(row)
        prompt = self._remembered(row, frame.prompt)
        image_tokens = int(torch.isin(prompt["input_ids"], self._image_ids).sum())
        if image_tokens < len(row.images) or (image_tokens and not row.images):
            raise DataError(
                f"{row.source}: the row has {len(row.images)} images, but its prompt has {image_tokens} image tokens "
                "after processing. Use the chat template and the processor that the model was published with."
            )
        pairs = [self._answer(frame.prompt, *self.template.answer(row, frame, text)) for text in answers]
        unknown = self.tokenizer.unk_token_id
        return EncodedRow(
            prompt=prompt,
            answers=[ids for ids, _ in pairs],
            image_tokens=image_tokens,
            joined=[joined for _, joined in pairs],
            unknown=[0 if unknown is None else ids[:-1].count(unknown) for ids, _ in pairs],
        )

    def check_length(self, row: Row, answers: Sequence[str], encoded: EncodedRow) -> None:
        """Refuse a row that would not fit.

        Raises:
            DataError: names the row, the answer and the counts.
        """
        longest = max(range(len(answers)), key=lambda index: len(encoded.answers[index]), default=None)
        count = len(encoded.answers[longest]) if longest is not None else 0
        total = encoded.prompt_tokens + count
        text = encoded.prompt_tokens - encoded.image_tokens
        if self.limit is not None and total > self.limit:
            of = f" with the answer {answers[longest][:40]!r}" if longest is not None else ""
            raise DataError(
                f"{row.source}: the prompt{of} has {total} tokens ({text} text, {encoded.image_tokens} image, "
                f"{count} answer), more than the {self.limit} allowed. Nothing is "
                "truncated: raise data.max_length, shorten the row, make its images smaller, or take it out."
            )

    def _remembered(self, row: Row, text: str) -> dict[str, Tensor]:
        if self._memory is None:
            return self._prompt(row, text)
        key = (text, *map(id, row.images))
        if key not in self._memory:
            self._memory[key] = self._prompt(row, text)
        return self._memory[key]

    def _prompt(self, row: Row, text: str) -> dict[str, Tensor]:
        """Call the processor on one prompt and its images."""
        images = [open_image(image, source=row.source) for image in row.images]
        bos = self.tokenizer.bos_token
        special = self._add_special_tokens
        if special is None:
            special = not (bos and text.startswith(bos))
        try:
            found = self._processor(
                text=[text],
                images=[images] if images else None,
                return_tensors="pt",
                text_kwargs={"add_special_tokens": special, "padding": False, "truncation": False},
            )
        except (ValueError, TypeError, IndexError, RuntimeError, OSError) as problem:
            raise DataError(
                f"{row.source}: {type(self._processor).__name__} refuses the prompt{_sizes(images)}: {problem}"
            ) from problem
        for name, value in found.items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"{type(self._processor).__name__} returns `{name}` as {type(value).__name__} and not as a tensor, "
                    "so it cannot be batched. Use a processor class that transformers itself provides."
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


def _image_ids(processor: Any) -> list[int]:
    """Ids of the tokens that stand for images after processing."""
    found = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    ids = [int(token) for token in found if token is not None]
    if not ids:
        raise ConfigError(
            f"{type(processor).__name__} does not say which token stands for an image (`image_token_id`), so a lost "
            "image would go unnoticed. Use a processor of a vision-language model that transformers provides."
        )
    return ids


def _check_no_suffix(tokenizer: Any) -> None:
    """A tokenizer that ends every text with a token would end the prompt before the answer."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    added = tokenizer("a", add_special_tokens=True)["input_ids"]
    if added[-1:] != plain[-1:]:
        raise ConfigError(
            "the tokenizer puts a token after every text, which would stand between prompt and answer. "
            "Set `add_eos_token` to false in its tokenizer_config.json."
        )


def _sizes(images: Sequence[Image.Image]) -> str:
    """Sizes of the images, because processors often refuse extreme ones."""
    return (
        f" with images of {', '.join(f'{image.width} x {image.height}' for image in images)} pixels" if images else ""
    )
