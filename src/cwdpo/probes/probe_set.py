"""A probe set in tokens: batches of prompts x answers, the same at every reading, on every number of ranks."""

import io
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from cwdpo.batch import Batch, Role, pad_answers
from cwdpo.data.collate import answer_key, prompt_digest
from cwdpo.data.encode import Encoder
from cwdpo.data.images import open_image
from cwdpo.data.rows import ImageSource, Row
from cwdpo.errors import DataError
from cwdpo.records import PROBE_GROUPS

GROUPS: tuple[str, ...] = PROBE_GROUPS
"""Every answer group, in the order in which readings list them; ``docs/probes.md`` says what each one tells."""

FROM_DATA = ("chosen", "rejected", "gentle", "longer", "shorter")
"""Groups that the data gives. An answer of theirs that does not fit is an error; any other is left out."""

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class ProbeAnswer:
    """One answer to a probe row's prompt."""

    group: str
    text: str
    images: tuple[ImageSource, ...] | None = None
    """Shown in place of the row's own images; None shows the row's own."""


@dataclass(frozen=True)
class ProbeRow:
    """A row and all that is asked about it."""

    index: int
    """Position in the probe set."""

    row: Row
    answers: tuple[ProbeAnswer, ...]


def choose_rows(rows: Sequence[Row], number: int, seed: int) -> list[Row]:
    """A fixed sample of rows, in their own order; all of them where there are no more than ``number``."""
    if len(rows) <= number:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), number))]


def probe_rows(
    rows: Sequence[Row],
    *,
    groups: Collection[str] = GROUPS,
    seed: int = 0,
    greedy: Sequence[str] | None = None,
    on_policy: Sequence[str] | None = None,
) -> list[ProbeRow]:
    """Make the answers of each row. The same rows, groups and seed always give the same answers.

    A group that a row cannot have (no gentle negative, a one-word answer to shuffle, no image) is left out there.

    Args:
        rows: the probe set.
        groups: the wanted ones of :data:`GROUPS`.
        seed: of the shuffled words and of which other row is taken.
        greedy: the starting model's own answer to each row, or None if there are none.
        on_policy: the same, sampled.
    """
    found = []
    for index, row in enumerate(rows):
        answers = [
            ProbeAnswer("chosen", row.chosen),
            *_given("rejected", row.rejected[0] if row.rejected else None),
            *_given("gentle", row.gentle),
            *_given("longer", row.longer),
            *_given("shorter", row.shorter),
            *_given("greedy", greedy[index] if greedy is not None else None),
            *_given("on_policy", on_policy[index] if on_policy is not None else None),
            *_given("shuffled", shuffled_words(row.chosen, random.Random(f"{seed}:{index}"))),
            *_others(rows, index, seed),
            *_blank(row),
        ]
        found.append(ProbeRow(index, row, tuple(answer for answer in answers if answer.group in groups)))
    return found


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


def _given(group: str, text: str | None) -> list[ProbeAnswer]:
    return [] if text is None else [ProbeAnswer(group, text)]


def _others(rows: Sequence[Row], index: int, seed: int) -> list[ProbeAnswer]:
    """Another row's chosen answer to this prompt, and this row's chosen answer under another row's images.

    The other row is the first, a seeded distance further on, that differs in what is exchanged.
    """
    row = rows[index]
    first = random.Random(seed).randrange(len(rows))
    others = [rows[(index + first + step) % len(rows)] for step in range(len(rows))]
    others = [other for other in others if other.chosen != row.chosen]
    pictured = [o for o in others if row.images and len(o.images) == len(row.images) and o.images != row.images]
    return [
        *(ProbeAnswer("other_answer", other.chosen) for other in others[:1]),
        *(ProbeAnswer("other_image", row.chosen, other.images) for other in pictured[:1]),
    ]


def _blank(row: Row) -> list[ProbeAnswer]:
    """The chosen answer under grey images of the same sizes, as files in memory: a grey PNG takes little."""
    if not row.images:
        return []
    sizes = map(partial(_size, source=row.source), row.images)
    return [ProbeAnswer("blank", row.chosen, tuple(grey_image(width, height) for width, height in sizes))]


def grey_image(width: int, height: int) -> bytes:
    """A PNG of one grey."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), _GREY).save(file, format="PNG")
    return file.getvalue()


def _size(image: ImageSource, *, source: str) -> tuple[int, int]:
    return open_image(image, source=source).size


logger = logging.getLogger(__name__)

_KEEP_BYTES = 2**28
"""Encoded prompts up to 256 MB are kept between readings; beyond, the images are processed anew each time."""

_ROLES = {"chosen": Role.CHOSEN, "rejected": Role.REJECTED, "gentle": Role.GENTLE}


@dataclass(frozen=True)
class ProbeBatch:
    """A batch, and what each of its answers is."""

    batch: Batch
    rows: tuple[int, ...]
    """``A`` positions in the probe set."""

    groups: tuple[str, ...]
    """``A`` answer groups."""


@dataclass(frozen=True)
class _Prompt:
    """One prompt of a probe row (its own, or the same under other images) with its answers, in tokens."""

    row: int
    tensors: dict[str, Tensor]
    groups: list[str]
    answers: list[list[int]]
    keys: list[str]


class ProbeSet:
    """The rows of a probe set that one rank measures."""

    def __init__(
        self, rows: Sequence[ProbeRow], encoder: Encoder, *, answers_in_a_pass: int = 24, rank: int = 0, ranks: int = 1
    ) -> None:
        """Take this rank's share of the rows. Nothing is encoded before the first reading.

        Args:
            rows: from :func:`cwdpo.probes.probe_rows`, all of them.
            encoder: as in training.
            answers_in_a_pass: most answers that go through the model at once; bounds the memory.
            rank: of this process.
            ranks: how many there are.
        """
        self.rows = tuple(rows)
        # a rank without a row measures the first one again, as an engine's self-check waits for all ranks
        self._mine = self.rows[rank::ranks] or self.rows[:1]
        self._idle = rank >= len(self.rows)
        self._encoder = encoder
        most = max(len(row.answers) for row in self.rows)
        self._rows_in_a_pass = max(1, answers_in_a_pass // most)
        self._kept: dict[int, list[_Prompt]] = {}
        self._kept_bytes = 0
        self._left_out: Counter[str] = Counter()
        self._complained = False

    @property
    def is_idle(self) -> bool:
        """Whether another rank already measures the row that this one does, so that it does not count here."""
        return self._idle

    def encode(self) -> None:
        """Encode what is kept between readings, so that the first one costs no more than any other."""
        for row in self._mine:
            self._prompts(row)
            if row.index not in self._kept:
                break

    def batches(self, *, chosen_apart: bool = False) -> Iterator[ProbeBatch]:
        """All answers of this rank's rows, in batches of whole rows.

        Args:
            chosen_apart: give the chosen answers in batches of their own, a row each; for what is too large to be
                held for all answers (distributions over a large vocabulary).
        """
        for start in range(0, len(self._mine), self._rows_in_a_pass):
            prompts = [p for row in self._mine[start : start + self._rows_in_a_pass] for p in self._prompts(row)]
            if chosen_apart:
                yield from (_collate([p], lambda group: group == "chosen") for p in prompts if "chosen" in p.groups)
                prompts = [p for p in prompts if set(p.groups) - {"chosen"}]
            if prompts:
                yield _collate(prompts, lambda group: not (chosen_apart and group == "chosen"))
        self._complain()

    def _prompts(self, row: ProbeRow) -> list[_Prompt]:
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

    def _encode(self, row: ProbeRow, answers: Sequence[ProbeAnswer]) -> _Prompt | None:
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
        keys = [answer_key(digest, ids) for ids in encoded.answers]
        return _Prompt(row.index, encoded.prompt, [answer.group for answer in answers], encoded.answers, keys)

    def _fits(self, row: Row, answer: ProbeAnswer) -> bool:
        try:
            self._encoder.encode(row, [answer.text])
        except DataError:
            self._left_out[answer.group] += 1
            return False
        return True

    def _complain(self) -> None:
        """Say once which answers of our making could not be encoded."""
        if self._left_out and not self._complained:
            logger.warning(
                "probes leave out what the model cannot take (too long, or changed by its template): %s",
                ", ".join(f"{number} of group {group}" for group, number in sorted(self._left_out.items())),
            )
        self._complained = True


def _collate(prompts: Sequence[_Prompt], keep: Callable[[str], bool]) -> ProbeBatch:
    """A batch of the prompts' answers whose group is kept; every prompt has one at least."""
    answers: list[list[int]] = []
    owners: list[int] = []
    rows: list[int] = []
    groups: list[str] = []
    keys: list[str] = []
    for number, prompt in enumerate(prompts):
        for group, ids, key in zip(prompt.groups, prompt.answers, prompt.keys, strict=True):
            if keep(group):
                answers.append(ids)
                owners.append(number)
                rows.append(prompt.row)
                groups.append(group)
                keys.append(key)
    answer_ids, mask = pad_answers(answers)
    batch = Batch(
        row_index=torch.tensor([prompt.row for prompt in prompts]),
        prompts=[prompt.tensors for prompt in prompts],
        prompt_index=torch.tensor(owners),
        roles=torch.tensor([int(_ROLES.get(group, Role.PROBE)) for group in groups]),
        answer_ids=answer_ids,
        answer_mask=mask,
        keys=keys,
    )
    return ProbeBatch(batch, tuple(rows), tuple(groups))
