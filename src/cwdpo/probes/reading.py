"""One reading: what a model says of every answer of a probe set, summed up a line a group.

How the model predicted the chosen answers' tokens when the stage began, kept small enough to be kept at all.

A whole distribution is a float a token of the vocabulary: 64 answers of 50 tokens are 2 GB at 150,000 tokens. So each
position keeps its likeliest tokens only, as many as fit the budget, and everything else as one rest. TV and JS over
"those tokens and the rest" are never more than over the whole vocabulary, and TV is less by no more than the smaller
of the two rests. Where the whole vocabulary fits the budget, nothing is left out.
"""

import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Detail, eval_mode
from cwdpo.engine import Engine
from cwdpo.errors import UserError
from cwdpo.metrics import jensen_shannon, reliability, token_ece, total_variation
from cwdpo.probes.probe_set import ProbeBatch, ProbeSet
from cwdpo.records import PROBE_GROUPS, ProbeLine

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


_WIDE_VOCABULARY = 2**14
"""Above this many tokens the distributions of all answers would be too large to hold: the chosen ones go apart."""

_DETAILS: tuple[Detail, ...] = ("entropy", "confidence", "hit")
_STILL = 1e-6
"""Mean total variation below which nothing has moved but rounding."""


@dataclass
class Reading:
    """Numbers of one reading, before they are summed up; those of several ranks can be joined."""

    answers: dict[str, dict[int, float]] = field(default_factory=dict)
    """Group -> row -> lbar, nats per token."""

    tokens: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """Over the tokens of chosen answers: ``entropy``, ``confidence``, ``hit``, ``tv``, ``js``, ``to_argmax`` ->
    row -> values."""

    def joined(self, others: Iterable["Reading"]) -> "Reading":
        """All ranks' numbers as one reading; rows that several measured count once."""
        whole = Reading()
        for reading in [self, *others]:
            for group, means in reading.answers.items():
                whole.answers.setdefault(group, {}).update(means)
            for name, values in reading.tokens.items():
                whole.tokens.setdefault(name, {}).update(values)
        return whole

    def means(self) -> dict[str, float]:
        """Mean lbar of each group, in the order of :data:`cwdpo.records.PROBE_GROUPS`."""
        return {group: self._of_group(group).mean().item() for group in PROBE_GROUPS if group in self.answers}

    def lines(self, start: Mapping[str, float] | None) -> list[ProbeLine]:
        """A line a group, without stage and step.

        Args:
            start: mean lbar of each group when the stage began, or None if there is nothing to compare with.
        """
        lines: list[ProbeLine] = []
        for group in PROBE_GROUPS:
            if group not in self.answers:
                continue
            values = self._of_group(group)
            mean, (p10, p50, p90) = values.mean().item(), values.quantile(values.new_tensor([0.1, 0.5, 0.9])).tolist()
            line: ProbeLine = {"group": group, "n": len(values), "mean_logprob": mean}
            line |= {"p10": p10, "p50": p50, "p90": p90}
            if start is not None and group in start:
                line["delta"] = mean - start[group]
            if group == "chosen":
                line |= self._of_chosen()
            lines.append(line)
        return lines

    def _of_group(self, group: str) -> Tensor:
        """``(n,)`` lbar of a group's answers, in the order of the rows however many ranks measured them."""
        return torch.tensor([mean for _, mean in sorted(self.answers[group].items())], dtype=torch.float64)

    def _of_chosen(self) -> ProbeLine:
        """Means over the tokens of all chosen answers."""
        values = {
            name: torch.tensor([value for row in sorted(rows) for value in rows[row]], dtype=torch.float64)
            for name, rows in self.tokens.items()
        }
        hit = values["hit"] > 0
        sound = bool(torch.isfinite(values["confidence"]).all())  # a model that has diverged has no bins
        bins = reliability(values["confidence"], hit).tolist() if sound else []
        found: ProbeLine = {
            "entropy": values["entropy"].mean().item(),
            "top1": values["hit"].mean().item(),
            "argmax_mass": values["confidence"].mean().item(),
            "ece": token_ece(values["confidence"], hit).item() if sound else math.nan,
            "reliability": [(int(count), sure, right) for count, sure, right in bins],
        }
        if "tv" in values:
            moved = values["tv"].mean().item()
            gained = values["to_argmax"].mean().item()
            found |= {"tv": moved, "js": values["js"].mean().item()}
            found["moved_to_argmax"] = gained / moved if moved > _STILL else 0.0
        return found


@torch.no_grad()
def measure(
    model: nn.Module,
    probes: ProbeSet,
    engine: Engine,
    *,
    start: StartDistributions | None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Reading:
    """Let a model score all answers of a probe set. Leaves no trace: modes and random states are put back.

    Args:
        model: scored in eval mode.
        probes: this rank's share.
        engine: computes the log-probs, all answers of a prompt in one pass.
        start: what the chosen answers' predictions are compared with; rows that it lacks are recorded in it first.
            None leaves out TV, JS and the mass that moved.
        autocast: mixed precision as in training.
    """
    reading = Reading()
    device = next(model.parameters()).device
    apart = start is not None and _vocabulary(model) > _WIDE_VOCABULARY
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), eval_mode(model), autocast():
        for found in probes.batches(chosen_apart=apart):
            has_chosen = "chosen" in found.groups
            wide = ("distribution",) if start is not None and has_chosen else ()
            said = engine.logprobs(model, send_to_device(found.batch, device), want=(*_DETAILS, *wide))
            if not probes.is_idle:
                _take(reading, found, said, start)
    return reading


@torch.no_grad()
def warm_up(model: nn.Module, probes: ProbeSet, engine: Engine) -> None:
    """Do once what only a first reading has to do: encode the prompts, and let the engine get to know the model."""
    probes.encode()
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eval_mode(model):
        engine.logprobs(model, send_to_device(next(probes.batches()).batch, device), want=_DETAILS)


def _take(reading: Reading, found: ProbeBatch, said: AnswerLogprobs, start: StartDistributions | None) -> None:
    means = said.mean.double().tolist()
    for i, (row, group) in enumerate(zip(found.rows, found.groups, strict=True)):
        reading.answers.setdefault(group, {})[row] = means[i]
        if group == "chosen":
            for name, values in _of_tokens(said, i, row, start).items():
                reading.tokens.setdefault(name, {})[row] = values.double().tolist()


def _of_tokens(said: AnswerLogprobs, answer: int, row: int, start: StartDistributions | None) -> dict[str, Tensor]:
    """``(T,)`` values of one chosen answer's tokens."""
    mask = said.mask[answer]
    assert said.entropy is not None
    assert said.confidence is not None
    assert said.hit is not None
    values = {"entropy": said.entropy, "confidence": said.confidence, "hit": said.hit}
    found = {name: value[answer][mask] for name, value in values.items()}
    if start is None:
        return found
    assert said.distribution is not None
    distribution = said.distribution[answer][mask]
    if row not in start:
        start.record(row, distribution)
    moved = start.compare(row, distribution)
    return found | {"tv": moved.tv, "js": moved.js, "to_argmax": moved.to_argmax}


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def flat(lines: Sequence[ProbeLine]) -> dict[str, float]:
    """A reading as scalars for loggers and best-model choice: ``probes/delta/chosen``, ``probes/ece/chosen``, ..."""
    return {
        f"probes/{name}/{line['group']}": float(value)
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "n")
    }
