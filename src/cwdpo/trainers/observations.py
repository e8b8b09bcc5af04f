"""Numbers seen while training, kept per answer until the next log line averages them over steps and ranks."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from accelerate.utils import gather_object
from torch import Tensor

_QUANTILES = {"cooling": {"cooling/p10": 0.1, "cooling/p50": 0.5, "cooling/p90": 0.9}}
_HISTOGRAMS = {"cooling": "cooling/histogram"}
_BINS = 10


class Observations:
    """Per-answer values by name. Names in ``_QUANTILES`` are also summed up by quantiles, and counted in bins."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)
        self.histograms: dict[str, list[int]] = {}
        """Counts of the values in the newest summary; apart from it, as loggers take scalars only."""

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Remember ``(n,)`` values; they stay on their device, so that a step never waits for them."""
        for name, value in values.items():
            self._values[name].append(value.detach().float())

    def summary(self) -> dict[str, float]:
        """Means (and quantiles) over everything since the last call, on all ranks. Every rank must call it."""
        here = {name: torch.cat(parts).cpu() for name, parts in self._values.items()}
        self._values.clear()
        merged: defaultdict[str, list[Tensor]] = defaultdict(list)
        for rank in gather_object([here]):
            for name, values in rank.items():
                merged[name].append(values)
        summary: dict[str, float] = {}
        self.histograms = {}
        for name, parts in merged.items():
            values = torch.cat(parts).double()
            if len(values):
                summary |= _summarise(name, values)
                if name in _HISTOGRAMS:
                    self.histograms[_HISTOGRAMS[name]] = histogram(values)
        return summary


def _summarise(name: str, values: Tensor) -> dict[str, float]:
    quantiles = _QUANTILES.get(name, {})
    summary = {f"{name}/mean" if quantiles else name: values.mean().item()}
    return summary | {key: torch.quantile(values, q).item() for key, q in quantiles.items()}


def histogram(values: Tensor) -> list[int]:
    """How many values lie in each tenth of [0, 1]; the last tenth has both its ends. What is no number is in none.

    Args:
        values: ``(n,)`` in [0, 1].

    Example:
        >>> histogram(torch.tensor([0.0, 0.05, 0.1, 0.95, 1.0]))
        [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    numbers = values[~values.isnan()].float()  # rounded to that precision, 0.7 stands in the bin that begins there
    bins = (numbers * _BINS).floor().clamp(0, _BINS - 1).long()
    counts: list[int] = torch.bincount(bins, minlength=_BINS).tolist()
    return counts
