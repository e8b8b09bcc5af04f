"""How the model predicted the chosen answers' tokens when the stage began, kept small enough to be kept at all.

A whole distribution is a float a token of the vocabulary: 64 answers of 50 tokens are 2 GB at 150,000 tokens. So each
position keeps its likeliest tokens only, as many as fit the budget, and everything else as one rest. TV and JS over
"those tokens and the rest" are never more than over the whole vocabulary, and TV is less by no more than the smaller
of the two rests. Where the whole vocabulary fits the budget, nothing is left out.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cwdpo.drift import jensen_shannon, total_variation
from cwdpo.errors import UserError

_BUDGET = 2**22
"""Log-probs kept for a whole probe set: 32 MB with their indices."""

_FEWEST = 16
"""Likeliest tokens kept at a position, however many positions there are."""


@dataclass(frozen=True)
class Moved:
    """How far each token's prediction has moved since the stage began; ``(T,)`` each."""

    tv: Tensor
    js: Tensor
    """nats."""

    to_argmax: Tensor
    """Probability gained by the token that was the likeliest at the start; 0 where it lost."""


class StartDistributions:
    """Predicted distributions of a probe set's chosen answers, by row."""

    def __init__(self, num_rows: int, *, budget: int = _BUDGET) -> None:
        """Begin with none.

        Args:
            num_rows: rows of the probe set, over all ranks; each may take an equal part of the budget.
            budget: log-probs to keep in all.
        """
        self._num_rows, self._budget = num_rows, budget
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    @property
    def num_kept(self) -> int:
        """Log-probs that are held."""
        return sum(logprobs.numel() for _, logprobs in self._rows.values())

    def record(self, row: int, distribution: Tensor) -> None:
        """Keep the likeliest tokens of each position.

        Args:
            row: position in the probe set.
            distribution: ``(T, V)`` log-probs.
        """
        positions, vocabulary = distribution.shape
        count = min(vocabulary, max(_FEWEST, self._budget // (self._num_rows * positions)))
        logprobs, tokens = distribution.topk(count, dim=-1)
        self._rows[row] = (tokens.int().cpu(), logprobs.float().cpu())

    def compare(self, row: int, distribution: Tensor) -> Moved:
        """What a row's predictions are now, beside what they were.

        Args:
            row: one that was recorded.
            distribution: ``(T, V)`` log-probs now.
        """
        tokens, before = (tensor.to(distribution.device) for tensor in self._rows[row])
        now = distribution.gather(-1, tokens.long()).double()
        whole = tokens.shape[-1] == distribution.shape[-1]
        p, q = (kept if whole else _with_rest(kept) for kept in (now, before.double()))
        return Moved(
            tv=total_variation(p, q),
            js=jensen_shannon(p, q),
            to_argmax=(p[:, 0].exp() - q[:, 0].exp()).clamp(min=0),  # the first is the likeliest at the start
        )

    def update(self, other: "StartDistributions") -> None:
        """Take over what another rank recorded."""
        self._rows |= other._rows

    def save(self, path: Path) -> None:
        """Write all rows into one ``.npz``, whole or not at all."""
        arrays: dict[str, Any] = {}
        for row, (tokens, logprobs) in self._rows.items():
            arrays |= {f"{row}.tokens": tokens.numpy(), f"{row}.logprobs": logprobs.numpy()}
        written = path.with_suffix(".partial")
        with written.open("wb") as file:
            np.savez(file, **arrays)
        written.replace(path)

    @classmethod
    def load(cls, path: Path, num_rows: int) -> "StartDistributions":
        """Read what :meth:`save` wrote.

        Raises:
            UserError: the file is gone, damaged, or of another probe set.
        """
        start = cls(num_rows)
        try:
            with np.load(path) as arrays:
                for row in range(num_rows):
                    names = (f"{row}.tokens", f"{row}.logprobs")
                    start._rows[row] = tuple(torch.from_numpy(arrays[name]) for name in names)  # type: ignore[assignment]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: what the model predicted when the stage began cannot be read ({error}), so probes have "
                "nothing to compare with. Resume with --probes null, or begin the run anew."
            ) from error
        return start


def _with_rest(logprobs: Tensor) -> Tensor:
    """``(T, k + 1)``: the kept log-probs, and that of everything else together."""
    rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp(min=0)
    return torch.cat([logprobs, rest.log()], dim=-1)
