"""Metrics of training steps, kept per answer until the next log line averages them over steps and ranks."""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from cwdpo.errors import ConfigError
from cwdpo.records import COOLING_HISTOGRAM, COOLING_QUANTILES, HISTOGRAM_BINS, StepMetric
from cwdpo.trainers.callbacks import restored

_WEIGHTS: StepMetric = "cooling"


class StepMetrics(TrainerCallback):
    """Per-answer values by name. Of the weights ``cooling`` also quantiles, and counts in bins.

    As a callback it begins each training without values: one that ended between two log lines has left some.
    """

    def __init__(self) -> None:
        self._values: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._before: dict[str, int] = {}
        self.histograms: dict[str, list[int]] = {}
        """Counts of the values in the newest summary; apart from it, as loggers take scalars only."""

    def add(self, values: Mapping[StepMetric, Tensor]) -> None:
        """Remember ``(n,)`` values; they stay on their device, so that a step never waits for them."""
        for name, value in values.items():
            self._values[name].append(value.detach().float())

    def begin_step(self) -> None:
        """From here on values belong to a new step."""
        self._before = {name: len(parts) for name, parts in self._values.items()}

    def forget_step(self) -> None:
        """Drop the values of the step that is going on."""
        for name, parts in self._values.items():
            del parts[self._before.get(name, 0) :]

    def clear(self) -> None:
        """Drop all values."""
        self._values.clear()
        self._before = {}

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.clear()

    def summary(self) -> dict[str, float]:
        """Means (and quantiles) over everything since the last call, on all ranks. Every rank must call it."""
        here = {name: torch.cat(parts).cpu() for name, parts in self._values.items() if parts}
        self.clear()
        merged: defaultdict[str, list[Tensor]] = defaultdict(list)
        for rank in gather_object([here]):
            for name, values in rank.items():
                merged[name].append(values)
        summary: dict[str, float] = {}
        self.histograms = {}
        for name, parts in merged.items():
            values = torch.cat(parts).double()
            if not len(values):
                continue
            summary["cooling/mean" if name == _WEIGHTS else name] = values.mean().item()
            if name == _WEIGHTS:
                summary |= {key: torch.quantile(values, q).item() for key, q in COOLING_QUANTILES.items()}
                self.histograms[COOLING_HISTOGRAM] = histogram(values)
        return summary


def check_best_metric(args: TrainingArguments, metrics: Sequence[StepMetric], sets: Sequence[str] = ()) -> None:
    """Refuse, with a ConfigError, a ``metric_for_best_model`` that no evaluation will have: the Trainer would look for
    it after the first one.

    Args:
        args: of a stage.
        metrics: what the stage measures of its answers.
        sets: names of the sets that are evaluated, where there are several.
    """
    wanted = args.metric_for_best_model
    if wanted is None or args.eval_strategy == "no":
        return
    names = {"loss", "runtime", "samples_per_second", "steps_per_second"}
    for metric in metrics:
        names |= {"cooling/mean", *COOLING_QUANTILES} if metric == _WEIGHTS else {metric}
    name = wanted.removeprefix("eval_")
    if sets:
        inside = next((name.removeprefix(f"{each}_") for each in sets if name.startswith(f"{each}_")), None)
        if inside is None:
            raise ConfigError(
                f"metric_for_best_model is {wanted!r}, but several sets are evaluated. Name one of them: "
                f"eval_{sets[0]}_{name}.",
                setting="metric_for_best_model",
            )
        name = inside
    if name not in names and not name.startswith("probes/"):
        near = difflib.get_close_matches(name, sorted(names), n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Evaluations have {', '.join(sorted(names))}."
        raise ConfigError(
            f"metric_for_best_model is {wanted!r}, which no evaluation of this stage has. {hint}",
            setting="metric_for_best_model",
        )


def histogram(values: Tensor) -> list[int]:
    """How many ``(n,)`` values lie in each tenth of [0, 1]; the last tenth has both its ends. NaN is in none.

    Example:
        >>> histogram(torch.tensor([0.0, 0.05, 0.1, 0.95, 1.0]))
        [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    numbers = values[~values.isnan()].float()  # rounded to that precision, 0.7 stands in the bin that begins there
    bins = (numbers * HISTOGRAM_BINS).floor().clamp(0, HISTOGRAM_BINS - 1).long()
    counts: list[int] = torch.bincount(bins, minlength=HISTOGRAM_BINS).tolist()
    return counts


class TokenCount(TrainerCallback, ExportableState):
    """A counter that the Trainer saves with each checkpoint and sets back on resuming."""

    def __init__(self) -> None:
        self.before = 0
        """Tokens on all ranks up to the last log line or checkpoint."""
        self._here = 0

    def add(self, tokens: int) -> None:  # of this rank
        self._here += tokens

    def total(self) -> int:
        """Tokens on all ranks. Every rank must call it."""
        self.before += sum(gather_object([self._here]))
        self._here = 0
        return self.before

    def on_train_begin(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        self.before = int((restored(self, state) or {"before": 0})["before"])
        self._here = 0

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Count on all ranks before a checkpoint, which only rank 0 writes."""
        if control.should_save:
            self.total()

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"before": self.before}}
