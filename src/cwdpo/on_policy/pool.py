"""The negatives of a refresh in use, and which of them a batch gets: the same after an interruption and on any rank."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cwdpo.batch import Batch, Role, pad_answers
from cwdpo.negatives.candidates import Candidate, Refresh
from cwdpo.negatives.mixing import mix_negatives
from cwdpo.reference import ReferenceCache


def rejected_keys(batch: Batch) -> list[list[str]]:
    """For each prompt the content keys of its rejected answers, in the batch's order."""
    found: list[list[str]] = [[] for _ in batch["prompts"]]
    for owner, role, key in zip(batch["prompt_index"].tolist(), batch["roles"].tolist(), batch["keys"], strict=True):
        if role == Role.REJECTED:
            found[owner].append(key)
    return found


def replace_rejected(batch: Batch, chosen: Mapping[int, Mapping[str, Sequence[int]]]) -> Batch:
    """The batch with other rejected answers for some of its prompts.

    Args:
        batch: as collated, on any device.
        chosen: for a prompt's position in the batch, its rejected answers from now on: content key to token ids
            through the end token. Prompts that are not named keep theirs.

    Returns:
        A new batch; the given one is unchanged.
    """
    if not chosen:
        return batch
    owners, roles = batch["prompt_index"].tolist(), batch["roles"].tolist()
    lengths, ids = batch["answer_mask"].sum(dim=-1).tolist(), batch["answer_ids"].tolist()
    answers = [
        (owner, role, ids[place][: lengths[place]], batch["keys"][place])
        for place, (owner, role) in enumerate(zip(owners, roles, strict=True))
        if not (role == Role.REJECTED and owner in chosen)
    ]
    answers += [
        (owner, int(Role.REJECTED), list(tokens), key) for owner, new in chosen.items() for key, tokens in new.items()
    ]
    answers.sort(key=lambda answer: answer[0])  # stable: a prompt's own answers stay before its new ones
    padded, mask = pad_answers([tokens for _, _, tokens, _ in answers])
    like = batch["answer_ids"]
    return Batch(
        row_index=batch["row_index"],
        prompts=batch["prompts"],
        prompt_index=batch["prompt_index"].new_tensor([owner for owner, *_ in answers]),
        roles=batch["roles"].new_tensor([role for _, role, *_ in answers]),
        answer_ids=padded.to(like.device),
        answer_mask=mask.to(like.device),
        keys=[key for *_, key in answers],
    )


class NegativePool:
    """The negatives of one refresh by row and content key; without one it is empty."""

    def __init__(self, refresh: Refresh | None = None, *, seed: int = 0) -> None:
        self._seed, self._round = seed, refresh.number if refresh else 0
        self._of_row: defaultdict[int, dict[str, Candidate]] = defaultdict(dict)
        self._own: defaultdict[int, dict[str, Candidate]] = defaultdict(dict)
        for candidate in refresh.candidates if refresh else ():
            if candidate.source == "dataset":
                self._own[candidate.row][str(candidate.key)] = candidate
            elif candidate.reason is None and candidate.key is not None:
                self._of_row[candidate.row][candidate.key] = candidate

    def add_to(self, cache: ReferenceCache) -> None:
        """Let a cache answer for these negatives too; their own file keeps them."""
        kept = [candidate for of_row in self._of_row.values() for candidate in of_row.values()]
        totals = [candidate.reference_logprob for candidate in kept]
        assert None not in totals, "sampled without the reference"
        lengths = [len(candidate.ids or ()) for candidate in kept]
        cache.add([str(c.key) for c in kept], [total or 0.0 for total in totals], lengths, keep=False)

    def mixed(self, batch: Batch, *, share: float, count: int | None, level: float | None = None) -> Batch:
        """The batch with some of its rejected answers exchanged for sampled ones.

        Args:
            batch: as collated.
            share: on-policy fraction, from 0 to 1.
            count: negatives of a prompt; None for as many as it has.
            level: of the curriculum; None without one. It has no say before the first refresh.
        """
        chosen: dict[int, dict[str, list[int]]] = {}
        for place, (row, keys) in enumerate(zip(batch["row_index"].tolist(), rejected_keys(batch), strict=True)):
            taken = self._choose(row, keys, share, count, level)
            if set(taken) != set(keys):
                own, sampled = _tokens(batch, place), self._of_row.get(row, {})
                chosen[place] = {key: own.get(key) or sampled[key].ids or [] for key in taken}
        return replace_rejected(batch, chosen)

    def is_sampled(self, batch: Batch, answers: Tensor) -> Tensor:
        """``(n,)`` whether each of these ``(n,)`` answers of a batch is one of this pool."""
        found = [key in self._of_row.get(row, {}) for row, key in _named(batch, answers)]
        return torch.tensor(found, dtype=torch.bool, device=answers.device)

    def lbars(self, batch: Batch, answers: Tensor) -> Tensor:
        """Up to ``(n,)`` lbar at the refresh, of those of ``(n,)`` answers that were measured there, nats per token."""
        known = []
        for row, key in _named(batch, answers):
            candidate = self._of_row.get(row, {}).get(key) or self._own.get(row, {}).get(key)
            if candidate is not None and candidate.lbar is not None:
                known.append(candidate.lbar)
        return torch.tensor(known, dtype=torch.float32, device=answers.device)

    def _choose(self, row: int, keys: Sequence[str], share: float, count: int | None, level: float | None) -> list[str]:
        """Keys of a prompt's negatives."""
        wanted = (len(keys) or 1) if count is None else count
        own, sampled = self._own.get(row, {}), self._of_row.get(row, {})
        dropped = [key for key in keys if key in own and own[key].reason is not None]
        lbars = {key: found.lbar for key, found in (own | sampled).items() if found.lbar is not None}
        has_level = level is not None and all(key in lbars for key in (*keys, *sampled))
        mixed = mix_negatives(
            [key for key in keys if key not in dropped],
            list(sampled),
            fraction=share,
            seed=self._seed,
            row_id=str(row),
            round=self._round,
            count=wanted,
            level=level if has_level else None,
            lbars=lbars,
        )
        taken = [negative.text for negative in mixed]
        spare = sorted(
            set(dropped) - set(taken), key=lambda key: (-lbars.get(key, -math.inf), key)
        )  # the hardest of them first
        return taken + spare[: wanted - len(taken)]


def _named(batch: Batch, answers: Tensor) -> list[tuple[int, str]]:
    """Row and content key of some answers."""
    rows, owners = batch["row_index"].tolist(), batch["prompt_index"].tolist()
    return [(rows[owners[i]], batch["keys"][i]) for i in answers.tolist()]


def _tokens(batch: Batch, prompt: int) -> dict[str, list[int]]:
    """Content key to token ids of a prompt's rejected answers."""
    chosen = (batch["prompt_index"] == prompt) & (batch["roles"] == Role.REJECTED)
    return {
        batch["keys"][i]: batch["answer_ids"][i][batch["answer_mask"][i]].tolist()
        for i in chosen.nonzero()[:, 0].tolist()
    }
