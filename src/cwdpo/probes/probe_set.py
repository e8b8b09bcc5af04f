"""A probe set: held-out rows with many answers each, in batches that are the same at every reading."""

import io
import logging
import random
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn
from transformers import ProcessorMixin

from cwdpo.batch import Batch, Role, image_key, pad_answers
from cwdpo.data.collate import answer_key, prompt_digest
from cwdpo.data.encode import Encoder
from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Row
from cwdpo.engine import FeatureCache
from cwdpo.errors import DataError
from cwdpo.generation import generate_answers
from cwdpo.records import PROBE_GROUPS

FROM_DATA = ("chosen", "rejected", "gentle", "longer", "shorter")
"""Groups that the data gives. An answer of theirs that does not fit is an error; any other is left out."""

logger = logging.getLogger(__name__)

_GREY = (128, 128, 128)

_BEYOND = 8
"""Tokens that the model's own answer may have more than the longest chosen answer of the probe set."""

_KEEP_BYTES = 2**28
"""Encoded prompts up to 256 MB are kept between readings; beyond, the images are processed again each time."""

_ROLES = {"chosen": Role.CHOSEN, "rejected": Role.REJECTED, "gentle": Role.GENTLE}


@dataclass(frozen=True)
class ProbeAnswer:
    """One answer to a probe row's prompt."""

    group: str
    """One of :data:`cwdpo.records.PROBE_GROUPS`."""

    text: str
    images: tuple[ImageSource, ...] | None = None
    """Shown in place of the row's own images; None shows the row's own."""


@dataclass(frozen=True)
class ProbeRow:
    """A row and all answers to it that are measured."""

    index: int
    """Position in the probe set."""

    row: Row
    answers: tuple[ProbeAnswer, ...]


class ProbeBatch(NamedTuple):
    """A batch, and of each of its answers the row's position in the probe set and the group."""

    batch: Batch
    rows: tuple[int, ...]
    groups: tuple[str, ...]


def own_answers(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    processor: ProcessorMixin,
    temperature: float | None = None,
    seed: int = 0,
    encoder: Encoder | None = None,
    features: FeatureCache | None = None,
) -> list[str]:
    """A model's own answers, cut a few tokens beyond the longest chosen answer: greedy ones without a temperature."""
    longest = max((len(processor.tokenizer(row.chosen)["input_ids"]) for row in rows), default=0)
    return generate_answers(
        model,
        processor,
        rows,
        max_new_tokens=longest + _BEYOND,
        temperature=temperature,
        seed=seed,
        warn_of_cut=False,
        encoder=encoder,
        features=features,
    )


def probe_rows(
    rows: Sequence[Row],
    *,
    groups: Collection[str] = PROBE_GROUPS,
    seed: int = 0,
    greedy: Sequence[str] | None = None,
    on_policy: Sequence[str] | None = None,
    image_rows: int | None = None,
) -> list[ProbeRow]:
    """Make the answers of each row. The same rows, groups and seed always give the same answers.

    A group that a row cannot have (no gentle negative, a one-word answer to shuffle, no image) is left out there.
    ``greedy`` and ``on_policy`` are the starting model's own answers to the first rows, where there are some. The first
    ``image_rows`` are asked under other images too; None asks all.
    """
    found = []
    for index, row in enumerate(rows):
        texts = {
            "chosen": row.chosen,
            "rejected": row.rejected[0] if row.rejected else None,
            "gentle": row.gentle,
            "longer": row.longer,
            "shorter": row.shorter,
            "greedy": greedy[index] if greedy and index < len(greedy) else None,
            "on_policy": on_policy[index] if on_policy and index < len(on_policy) else None,
            "shuffled": shuffled_words(row.chosen, random.Random(f"{seed}:{index}")),
        }
        answers = [ProbeAnswer(group, text) for group, text in texts.items() if text is not None]
        answers += [*_exchanged(rows, index, seed, images=image_rows is None or index < image_rows)]
        answers += _blank(row) if image_rows is None or index < image_rows else []
        found.append(ProbeRow(index, row, tuple(answer for answer in answers if answer.group in groups)))
    return found


class ProbeSet:
    """The rows of a probe set that one rank measures."""

    def __init__(
        self, rows: Sequence[ProbeRow], encoder: Encoder, *, answers_in_a_pass: int = 24, rank: int = 0, ranks: int = 1
    ) -> None:
        """Take this rank's share of all ``rows``; at most ``answers_in_a_pass`` go through the model at once, which
        bounds the memory. Nothing is encoded before the first reading."""
        self.rows = tuple(rows)
        # a rank without a row measures the first one again, as an engine's self-check waits for all ranks
        self._mine = self.rows[rank::ranks] or self.rows[:1]
        self.is_idle = rank >= len(self.rows)
        """Whether another rank already measures the row that this one does, so that it does not count here."""
        self._encoder = encoder
        self._rows_in_a_pass = max(1, answers_in_a_pass // max(len(row.answers) for row in self.rows))
        self._kept: dict[int, list[_Prompt]] = {}
        self._kept_bytes = 0
        self._left_out: Counter[str] = Counter()
        self._has_warned = False

    def encode(self) -> None:
        """Encode what is kept between readings, so that the first one costs no more than any other."""
        for row in self._mine:
            self._prompts(row)
            if row.index not in self._kept:
                break

    def batches(self, *, chosen_apart: bool = False) -> Iterator[ProbeBatch]:
        """All answers of this rank's rows, in batches of whole rows; with ``chosen_apart`` the chosen ones come by
        themselves, a row each, for what is too large to be held for all (distributions over a large vocabulary)."""
        for start in range(0, len(self._mine), self._rows_in_a_pass):
            prompts = [p for row in self._mine[start : start + self._rows_in_a_pass] for p in self._prompts(row)]
            if chosen_apart:
                yield from (_collate([p]) for prompt in prompts if (p := prompt.of(chosen=True)).answers)
                prompts = [p for prompt in prompts if (p := prompt.of(chosen=False)).answers]
            if prompts:
                yield _collate(prompts)
        if self._left_out and not self._has_warned:
            logger.warning(
                "probes leave out what the model cannot take (too long, or changed by its template): %s",
                ", ".join(f"{number} of group {group}" for group, number in sorted(self._left_out.items())),
            )
        self._has_warned = True

    def _prompts(self, row: ProbeRow) -> list["_Prompt"]:
        if row.index in self._kept:
            return self._kept[row.index]
        by_images: dict[int, list[ProbeAnswer]] = {}
        for answer in row.answers:
            by_images.setdefault(id(answer.images), []).append(answer)
        prompts = [p for answers in by_images.values() if (p := self._encode(row, answers)) is not None]
        size = sum(tensor.nbytes for prompt in prompts for tensor in prompt.tensors.values())
        if self._kept_bytes + size <= _KEEP_BYTES:
            self._kept[row.index] = prompts
            self._kept_bytes += size
        return prompts

    def _encode(self, row: ProbeRow, answers: Sequence[ProbeAnswer]) -> "_Prompt | None":
        """One prompt with those of its answers that the model can take."""
        shown = row.row if answers[0].images is None else replace(row.row, images=answers[0].images)
        try:
            encoded = self._encoder.encode(shown, [answer.text for answer in answers])
        except DataError:
            answers = [answer for answer in answers if answer.group in FROM_DATA or self._fits(shown, answer)]
            if not answers:
                return None
            encoded = self._encoder.encode(shown, [answer.text for answer in answers])
        digest = prompt_digest(encoded.prompt)
        tokens = [
            _Answer(answer.group, ids, answer_key(digest, ids))
            for answer, ids in zip(answers, encoded.answers, strict=True)
        ]
        return _Prompt(row.index, encoded.prompt, image_key(encoded.prompt), tokens)

    def _fits(self, row: Row, answer: ProbeAnswer) -> bool:
        try:
            self._encoder.encode(row, [answer.text])
        except DataError:
            self._left_out[answer.group] += 1
            return False
        return True


class _Answer(NamedTuple):
    group: str
    ids: list[int]
    key: str


class _Prompt(NamedTuple):
    """One prompt of a probe row (its own, or the same under other images) with its answers, in tokens."""

    row: int
    tensors: dict[str, Tensor]
    image_key: str
    answers: list[_Answer]

    def of(self, *, chosen: bool) -> "_Prompt":
        """The prompt with its chosen answer alone, or with all others."""
        return self._replace(answers=[answer for answer in self.answers if (answer.group == "chosen") == chosen])


def _collate(prompts: Sequence[_Prompt]) -> ProbeBatch:
    """A batch of prompts; every one has at least one answer."""
    answers = [(number, answer) for number, prompt in enumerate(prompts) for answer in prompt.answers]
    groups = tuple(answer.group for _, answer in answers)
    answer_ids, mask = pad_answers([answer.ids for _, answer in answers])
    batch = Batch(
        row_index=np.array([prompt.row for prompt in prompts]),
        prompts=[prompt.tensors for prompt in prompts],
        prompt_index=np.array([number for number, _ in answers]),
        roles=np.array([int(_ROLES.get(group, Role.PROBE)) for group in groups]),
        lengths=np.array([len(answer.ids) for _, answer in answers]),
        answer_ids=answer_ids,
        answer_mask=mask,
        keys=[answer.key for _, answer in answers],
        image_keys=[prompt.image_key for prompt in prompts],
    )
    return ProbeBatch(batch, tuple(prompts[number].row for number, _ in answers), groups)


def shuffled_words(text: str, rng: random.Random) -> str | None:
    """The words of a text in another order, or None where there is no other order.

    Example:
        >>> shuffled_words("a red disc", random.Random(0))
        'a disc red'
        >>> shuffled_words("red", random.Random(0)) is None
        True
    """
    words = text.split()
    if len(set(words)) < 2:
        return None
    shuffled = list(words)
    while shuffled == words:
        rng.shuffle(shuffled)
    return " ".join(shuffled)


def _exchanged(rows: Sequence[Row], index: int, seed: int, *, images: bool) -> list[ProbeAnswer]:
    """Another row's chosen answer to this prompt, and, with ``images``, this row's chosen answer under another row's
    images; the other row is the first, a seeded distance further on, that differs in what is exchanged."""
    row, first = rows[index], index + random.Random(seed).randrange(len(rows))
    others = [o for step in range(len(rows)) if (o := rows[(first + step) % len(rows)]).chosen != row.chosen]
    pictured = [o for o in others if row.images and len(o.images) == len(row.images) and o.images != row.images]
    return [
        *(ProbeAnswer("other_answer", other.chosen) for other in others[:1]),
        *(ProbeAnswer("other_image", row.chosen, other.images) for other in pictured[: int(images)]),
    ]


def _blank(row: Row) -> list[ProbeAnswer]:
    """The chosen answer under grey images of the same sizes, as files in memory: a grey PNG takes little."""
    if not row.images:
        return []
    images = []
    for image in row.images:
        file = io.BytesIO()
        Image.new("RGB", open_image(image, source=row.source).size, _GREY).save(file, format="PNG")
        images.append(file.getvalue())
    return [ProbeAnswer("blank", row.chosen, tuple(images))]
