"""The sampled negatives in use, and which of them a batch gets: the same after an interruption and on any rank."""

from collections import defaultdict

import torch
from torch import Tensor

from cwdpo.batch import Batch, Role
from cwdpo.negatives.mixing import mix_negatives
from cwdpo.negatives.refreshes import Candidate, Refresh
from cwdpo.reference import ReferenceCache
from cwdpo.trainers.splicing import rejected_keys, replace_rejected


class NegativePool:
    """The negatives of one refresh by row and content key; without one it is empty."""

    def __init__(self, refresh: Refresh | None = None, *, seed: int = 0) -> None:
        self._seed, self._round = seed, refresh.number if refresh else 0
        self._of_row: defaultdict[int, dict[str, Candidate]] = defaultdict(dict)
        for candidate in refresh.candidates if refresh else ():
            if candidate.reason is None and candidate.key is not None:
                self._of_row[candidate.row][candidate.key] = candidate

    def add_to(self, cache: ReferenceCache) -> None:
        """Let a cache answer for these negatives too; their own file keeps them."""
        kept = [candidate for of_row in self._of_row.values() for candidate in of_row.values()]
        totals = [candidate.reference_logprob for candidate in kept]
        assert None not in totals, "sampled without the reference"
        lengths = [len(candidate.ids or ()) for candidate in kept]
        cache.add([str(c.key) for c in kept], [total or 0.0 for total in totals], lengths, keep=False)

    def mixed(self, batch: Batch, *, share: float, count: int | None) -> Batch:
        """The batch with some of its rejected answers exchanged for sampled ones.

        Args:
            batch: as collated.
            share: on-policy fraction, from 0 to 1.
            count: negatives of a prompt; None for as many as it has.
        """
        if not self._round:
            return batch
        chosen: dict[int, dict[str, list[int]]] = {}
        for place, (row, keys) in enumerate(zip(batch["row_index"].tolist(), rejected_keys(batch), strict=True)):
            sampled = self._of_row.get(row, {})
            mixed = mix_negatives(
                keys, list(sampled), fraction=share, seed=self._seed, row_id=str(row), round=self._round, count=count
            )
            if {negative.text for negative in mixed} != set(keys):
                own = _tokens(batch, place)
                chosen[place] = {key: own.get(key) or sampled[key].ids or [] for key in (n.text for n in mixed)}
        return replace_rejected(batch, chosen)

    def is_sampled(self, batch: Batch, answers: Tensor) -> Tensor:
        """``(n,)`` whether each of these ``(n,)`` answers of a batch is one of this pool."""
        rows, owners = batch["row_index"].tolist(), batch["prompt_index"].tolist()
        found = [batch["keys"][i] in self._of_row.get(rows[owners[i]], {}) for i in answers.tolist()]
        return torch.tensor(found, dtype=torch.bool, device=answers.device)


def _tokens(batch: Batch, prompt: int) -> dict[str, list[int]]:
    """Content key to token ids of a prompt's rejected answers."""
    chosen = (batch["prompt_index"] == prompt) & (batch["roles"] == Role.REJECTED)
    return {
        batch["keys"][i]: batch["answer_ids"][i][batch["answer_mask"][i]].tolist()
        for i in chosen.nonzero()[:, 0].tolist()
    }
