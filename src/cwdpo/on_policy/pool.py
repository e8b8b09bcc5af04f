"""The negatives of a refresh in use, and which of them a batch gets: the same after an interruption and on any rank."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from cwdpo.batch import Batch, Integers, Role, on_device, pad_answers
from cwdpo.data.collate import RowDataset
from cwdpo.negatives.candidates import Candidate, Refresh
from cwdpo.negatives.filtering import RightAnswers, normalised
from cwdpo.negatives.mixing import mix_negatives
from cwdpo.reference import ReferenceCache


class RowTexts:
    """The texts of the rows' own negatives, which a batch holds as tokens alone."""

    def __init__(self, rows: RowDataset, right_answers: RightAnswers) -> None:
        self._rows, self._right_answers = rows, right_answers
        self._known: dict[int, tuple[tuple[str, ...], frozenset[str]]] = {}

    def __call__(self, index: int) -> tuple[tuple[str, ...], frozenset[str]]:
        """A row's rejected answers, and those of them that differ from a right answer in form alone, if at all."""
        if index not in self._known:
            row = self._rows[index][1]
            right = set(map(normalised, self._right_answers(row)))
            self._known[index] = row.rejected, frozenset(text for text in row.rejected if normalised(text) in right)
        return self._known[index]


class NegativePool:
    """The negatives of one refresh by row and content key; without one it is empty."""

    def __init__(self, refresh: Refresh | None = None, *, seed: int = 0) -> None:
        self._seed, self._round = seed, refresh.number if refresh else 0
        self._sampled: defaultdict[int, dict[str, Candidate]] = defaultdict(dict)
        self._own: defaultdict[int, dict[str, Candidate]] = defaultdict(dict)
        for candidate in refresh.candidates if refresh else ():
            if candidate.source == "dataset":
                self._own[candidate.row][str(candidate.key)] = candidate
            elif candidate.reason is None and candidate.key is not None:
                self._sampled[candidate.row][candidate.key] = candidate

    def add_to(self, cache: ReferenceCache) -> None:
        """Let a cache answer for these negatives too, in place of an earlier pool's; their own file keeps them."""
        kept = [candidate for of_row in self._sampled.values() for candidate in of_row.values()]
        totals = [candidate.reference_logprob for candidate in kept]
        assert None not in totals, "sampled without the reference"
        cache.answer_for_others([str(c.key) for c in kept], [total or 0.0 for total in totals])

    def mixed(
        self, batch: Batch, texts: RowTexts, *, share: float, count: int | None, level: float | None = None
    ) -> Batch:
        """The batch with some of its rejected answers exchanged for sampled ones; ``share`` is the on-policy fraction.

        A prompt gets ``count`` negatives, or where it is None as many as it has. A curriculum's ``level`` has no effect
        before the first refresh.
        """
        answers, is_changed = _by_prompt(batch), False
        for place, row in enumerate(batch["row_index"].tolist()):
            own = {key: where for role, key, where in answers[place] if role == Role.REJECTED}
            keys = [key for role, key, _ in answers[place] if role == Role.REJECTED]
            rejected, right = texts(row)
            taken = self._choose(row, keys, dict(zip(keys, rejected, strict=True)), right, share, count, level)
            if set(taken) != set(keys):
                is_changed = True
                others = [answer for answer in answers[place] if answer[0] != Role.REJECTED]
                new: list[Answer] = [
                    (int(Role.REJECTED), key, own[key] if key in own else self._sampled[row][key].ids or [])
                    for key in taken
                ]
                answers[place] = others + new
        return _with_answers(batch, answers) if is_changed else batch

    def is_sampled(self, batch: Batch, answers: Integers) -> NDArray[np.bool_]:
        """``(n,)`` whether each of these ``(n,)`` answers of a batch is one of this pool."""
        found = [key in self._sampled.get(row, {}) for row, key in _rows_and_keys(batch, answers)]
        return np.array(found, dtype=np.bool_)

    def lbars(self, batch: Batch, answers: Integers) -> Tensor:
        """Up to ``(n,)`` lbar at the refresh, of those of ``(n,)`` answers that were measured there, nats per token; on
        the CPU."""
        known = []
        for row, key in _rows_and_keys(batch, answers):
            candidate = self._sampled.get(row, {}).get(key) or self._own.get(row, {}).get(key)
            if candidate is not None and candidate.lbar is not None:
                known.append(candidate.lbar)
        return torch.tensor(known, dtype=torch.float32)

    def _choose(
        self,
        row: int,
        own: Sequence[str],
        texts: Mapping[str, str],
        right: frozenset[str],
        share: float,
        count: int | None,
        level: float | None,
    ) -> list[str]:
        """Keys of a prompt's negatives, no two of which differ in form alone; ``texts`` are those of its own ones."""
        wanted = (len(own) or 1) if count is None else count
        measured, sampled = self._own.get(row, {}), self._sampled.get(row, {})
        lbars = {key: found.lbar for key, found in (measured | sampled).items() if found.lbar is not None}
        has_level = level is not None and all(key in lbars for key in (*own, *sampled))
        wrong = [key for key in own if texts[key] not in right]
        dropped = [key for key in wrong if key in measured and measured[key].reason is not None]
        text_of = {**{key: candidate.text for key, candidate in sampled.items()}, **texts}
        mixed = mix_negatives(
            [key for key in wrong if key not in dropped],
            list(sampled),
            fraction=share,
            seed=self._seed,
            row_id=str(row),
            round=self._round,
            count=wanted,
            level=level if has_level else None,
            lbars=lbars,
            text_of=text_of,
        )
        taken = [negative.text for negative in mixed]
        forms = {normalised(text_of[key]) for key in taken}
        for key in sorted(dropped, key=lambda key: (-lbars.get(key, -math.inf), key)):  # the hardest of them first
            if len(taken) < wanted and normalised(texts[key]) not in forms:
                taken.append(key)
                forms.add(normalised(texts[key]))
        return taken or list(own[:wanted])  # right or not: a row that has no other negative keeps its own


Answer: TypeAlias = tuple[int, str, int | list[int]]
"""Role, content key, and where it is in the batch; if it is not there, its token ids through the end token."""


def _by_prompt(batch: Batch) -> list[list[Answer]]:
    """The answers of each prompt, in the batch's order."""
    found: list[list[Answer]] = [[] for _ in batch["prompts"]]
    owners, roles = batch["prompt_index"].tolist(), batch["roles"].tolist()
    for where, (owner, role, key) in enumerate(zip(owners, roles, batch["keys"], strict=True)):
        found[owner].append((role, key, where))
    return found


def _with_answers(batch: Batch, answers: Sequence[Sequence[Answer]]) -> Batch:
    """A batch of the same prompts with other answers; the given one is unchanged."""
    flat = [(owner, *answer) for owner, of_prompt in enumerate(answers) for answer in of_prompt]
    there, new = batch["answer_ids"], [found for *_, found in flat if isinstance(found, list)]
    lengths = np.array([batch["lengths"][found] if isinstance(found, int) else len(found) for *_, found in flat])
    width = int(lengths.max())
    more = pad_answers([*new, [0] * width])[0][:-1].to(there.device, non_blocking=True)
    # what is in the batch already is taken from where it is, which may be a GPU
    every = torch.cat([F.pad(there, (0, max(0, width - there.shape[1])))[:, :width], more])
    numbers = iter(range(len(there), len(every)))
    where = [found if isinstance(found, int) else next(numbers) for *_, found in flat]
    mask = torch.from_numpy(np.arange(width) < lengths[:, None])
    made = Batch(
        row_index=batch["row_index"],
        prompts=batch["prompts"],
        prompt_index=np.array([owner for owner, *_ in flat]),
        roles=np.array([role for _, role, *_ in flat]),
        lengths=lengths,
        answer_ids=every.index_select(0, on_device(where, there.device)),
        answer_mask=mask.to(there.device, non_blocking=True),
        keys=[key for _, _, key, _ in flat],
    )
    if "cropped" in batch:
        made["cropped"] = batch["cropped"]
    if "image_keys" in batch:
        made["image_keys"] = batch["image_keys"]
    return made


def _rows_and_keys(batch: Batch, answers: Integers) -> list[tuple[int, str]]:
    """Row and content key of some answers."""
    rows, owners = batch["row_index"].tolist(), batch["prompt_index"].tolist()
    return [(rows[owners[i]], batch["keys"][i]) for i in answers.tolist()]
