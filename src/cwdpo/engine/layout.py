"""How prompts and answers become rows of token ids: what both layouts share, and the plain one, one row an answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from cwdpo.batch import Batch, image_entries, token_names

PaddingSide = Literal["left", "right"]


@dataclass(frozen=True)
class Layout:
    """Rows ready for the model, and where in them the answers' tokens are predicted."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward."""

    predicts: Tensor
    """``(rows, length)`` True at each position whose next token belongs to an answer."""

    gather: Tensor | None = None
    """``(n,)`` for each answer token in the batch's answer order, which True entry of ``predicts`` predicts it; None
    where that is the order of the entries already."""


def one_row_an_answer(batch: Batch, *, padding_side: PaddingSide = "right", answer_type: int | None = None) -> Layout:
    """``[prompt | answer]`` for every answer; the prompt's tokens and images are repeated for each of its answers.

    Args:
        batch: see :class:`cwdpo.batch.Batch`.
        padding_side: where shorter rows are filled.
        answer_type: see :func:`continue_prompt`.
    """
    prompts = [batch["prompts"][i] for i in batch["prompt_index"].tolist()]
    lengths = batch["answer_mask"].sum(dim=-1).tolist()
    rows = [
        # the last token of an answer predicts nothing that is asked for, so it is left out of the row
        continue_prompt(prompt, ids[: length - 1], answer_type=answer_type)
        for prompt, ids, length in zip(prompts, batch["answer_ids"], lengths, strict=True)
    ]
    inputs = stack_tokens(rows, padding_side) | merge_images(prompts)
    return Layout(inputs, _answer_positions(inputs["attention_mask"], lengths, padding_side))


def with_images_once(layout: Layout, batch: Batch) -> Layout:
    """The same rows with the pixels of each prompt only once; what else describes the images stays with the rows."""
    pixels = merge_images(batch["prompts"])
    return replace(layout, inputs=layout.inputs | {"pixel_values": pixels["pixel_values"]})


def prompts_alone(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One row a prompt, left-padded and without an answer: what ``generate`` takes."""
    nothing = prompts[0]["input_ids"].new_empty(0)
    rows = [continue_prompt(prompt, nothing, answer_type=None) for prompt in prompts]
    return stack_tokens(rows, "left") | merge_images(prompts)


def merge_images(prompts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Everything that is not per token, joined along the first dimension, other dimensions padded with zeros.

    Processors either stack images (or patches) along the first dimension or give each prompt one entry with its images
    along the second; models read both in reading order, so joining serves both without knowing any name.
    """
    merged: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        for name, value in image_entries(prompt).items():
            merged.setdefault(name, []).append(value)
    return {name: torch.cat(_pad_to_largest(values)) for name, values in merged.items()}


def continue_prompt(prompt: dict[str, Tensor], extra_ids: Tensor, *, answer_type: int | None) -> dict[str, Tensor]:
    """Append tokens; every other per-token entry goes on as at the prompt's last token, which is text.

    Args:
        prompt: entries of shape ``(1, length, ...)`` and images, which are left out.
        extra_ids: ``(n,)`` token ids.
        answer_type: ``token_type_ids`` of the appended tokens, for models that tell answers from prompts by it.
    """
    extra = len(extra_ids)
    row = {}
    for name in token_names(prompt):
        value = prompt[name]
        tail = value[:, -1:].expand(-1, extra, *value.shape[2:])
        if name == "token_type_ids" and answer_type is not None:
            tail = torch.full_like(tail, answer_type)
        row[name] = torch.cat([value, tail], dim=1)
    row["input_ids"] = torch.cat([prompt["input_ids"], extra_ids[None]], dim=1)
    row.setdefault("attention_mask", torch.ones_like(row["input_ids"]))
    return row


def stack_tokens(rows: Sequence[dict[str, Tensor]], padding_side: PaddingSide) -> dict[str, Tensor]:
    """Rows of unequal length as ``(rows, length, ...)`` tensors; the attention mask is 0 on the padding."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    return {
        name: torch.cat([_pad_tokens(row[name], longest, padding_side, zero=name == "attention_mask") for row in rows])
        for name in rows[0]
    }


def _pad_tokens(value: Tensor, length: int, side: PaddingSide, *, zero: bool) -> Tensor:
    # The row's last token is the padding: unlike token 0 or a pad token it is sure not to be an image placeholder.
    filler = value[:, -1:].expand(-1, length - value.shape[1], *value.shape[2:])
    filler = torch.zeros_like(filler) if zero else filler
    return torch.cat([value, filler] if side == "right" else [filler, value], dim=1)


def _answer_positions(attention_mask: Tensor, lengths: Sequence[int], padding_side: PaddingSide) -> Tensor:
    """The last ``length`` real tokens of each row: the prompt's last one predicts the answer's first."""
    width = attention_mask.shape[1]
    length = torch.tensor(lengths, device=attention_mask.device)[:, None]
    end = attention_mask.sum(dim=1, keepdim=True) if padding_side == "right" else torch.full_like(length, width)
    position = torch.arange(width, device=attention_mask.device)[None]
    return (position >= end - length) & (position < end)


def _pad_to_largest(values: Sequence[Tensor]) -> list[Tensor]:
    largest = [max(value.shape[d] for value in values) for d in range(1, values[0].ndim)]
    padded = []
    for value in values:
        missing = [size - value.shape[d + 1] for d, size in enumerate(largest)]
        padding = [n for size in reversed(missing) for n in (0, size)]
        padded.append(F.pad(value, padding) if any(missing) else value)
    return padded
