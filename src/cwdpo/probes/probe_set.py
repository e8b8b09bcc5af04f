"""A probe set in tokens: batches of prompts x answers, the same at every reading, on every number of ranks."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cwdpo.batch import Batch, Role
from cwdpo.data.collate import answer_key, pad_answers, prompt_digest
from cwdpo.data.encode import Encoder
from cwdpo.data.rows import Row
from cwdpo.errors import DataError
from cwdpo.probes.answers import FROM_DATA, ProbeAnswer, ProbeRow

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
