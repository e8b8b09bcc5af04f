"""One reading: what a model predicts of every answer of a probe set, summed up in a line a group."""

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from cwdpo.batch import AnswerLogprobs, Detail, eval_mode
from cwdpo.engine import Engine
from cwdpo.engine.layout import select_prompts
from cwdpo.errors import UserError
from cwdpo.metrics import jensen_shannon, kl_divergence, reliability, token_ece, total_variation
from cwdpo.probes.probe_set import ProbeSet
from cwdpo.records import PROBE_GROUPS, ProbeGroup, ProbeLine, put_in_place

Autocast = Callable[[], AbstractContextManager[object]]
"""Mixed precision as in training."""

_BUDGET = 2**22
"""Log-probs kept for a whole probe set: 32 MB with their indices."""

_FEWEST = 16
"""Likeliest tokens kept at a position, however many positions there are."""

_WIDE_VOCABULARY = 2**14
"""Above this many tokens the distributions of all answers would be too large to hold: the chosen ones go apart."""

_DETAILS: tuple[Detail, ...] = ("entropy", "confidence", "hit")

_LEAST_REST = math.log(1e-7)
"""A smaller rest is the rounding of float32, whose logarithm would decide the KL."""

_ARRAYS = ("tokens", "logprobs")

_STILL = 1e-6
"""Mean total variation below which nothing has moved but rounding."""


@dataclass
class Reading:
    """Numbers of one reading, before they are summed up; those of several ranks can be joined."""

    answers: dict[str, dict[int, float]] = field(default_factory=dict)
    """Group -> row -> lbar, nats per token."""

    tokens: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """Over the tokens of chosen answers: ``entropy``, ``confidence``, ``hit``, ``tv``, ``js``, ``kl``, ``to_argmax``
    -> row -> values."""

    def joined(self, others: Iterable["Reading"]) -> "Reading":
        """All ranks' numbers as one reading; rows that several measured count once."""
        whole = Reading()
        for reading in [self, *others]:
            for group, means in reading.answers.items():
                whole.answers.setdefault(group, {}).update(means)
            for name, values in reading.tokens.items():
                whole.tokens.setdefault(name, {}).update(values)
        return whole

    def means(self) -> dict[ProbeGroup, float]:
        """Mean lbar of each group, in the order of :data:`cwdpo.records.PROBE_GROUPS`."""
        return {group: self._of_group(group).mean().item() for group in PROBE_GROUPS if group in self.answers}

    def lines(self, start: Mapping[ProbeGroup, float] | None) -> list[ProbeLine]:
        """A line a group, without stage and step; compared with the mean lbar at the start where that is given."""
        lines = []
        for group, mean in self.means().items():
            values = self._of_group(group)
            p10, p50, p90 = (torch.quantile(values, q / 100).item() for q in (10, 50, 90))
            line = ProbeLine(group=group, n=len(values), mean_logprob=mean, p10=p10, p50=p50, p90=p90)
            if start is not None and group in start:
                line["delta"] = mean - start[group]
            if group == "chosen":
                line.update(self._of_chosen())
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
        found = ProbeLine(
            entropy=values["entropy"].mean().item(),
            top1=values["hit"].mean().item(),
            argmax_mass=values["confidence"].mean().item(),
            ece=token_ece(values["confidence"], hit).item() if sound else math.nan,
            reliability=[(int(count), sure, right) for count, sure, right in bins],
        )
        if "tv" in values:
            moved, gained = values["tv"].mean().item(), values["to_argmax"].mean().item()
            found["tv"], found["js"] = moved, values["js"].mean().item()
            found["moved_to_argmax"] = gained / moved if moved > _STILL else 0.0
        return found


class Moved(NamedTuple):
    """How far each token's prediction has moved since the stage began; ``(T,)`` each, JS and KL in nats."""

    tv: Tensor
    js: Tensor
    kl: Tensor
    """KL(now || before)."""

    to_argmax: Tensor
    """Probability gained by the token that was the likeliest at the start; 0 where it lost."""


class StartDistributions:
    """How the model predicted the chosen answers' tokens when the stage began, by row; small enough to be kept.

    A whole distribution is a float a token of the vocabulary: 64 answers of 50 tokens are 2 GB at 150,000 tokens. So
    each position keeps its likeliest tokens only, as many as fit the budget, and everything else as one rest. TV, JS
    and KL over "those tokens and the rest" are never more than over the whole vocabulary, and TV is less by no more
    than the smaller of the two rests. Where the whole vocabulary fits the budget, nothing is left out.
    """

    def __init__(self, num_rows: int, *, budget: int = _BUDGET) -> None:
        """Begin with none. Each of the probe set's rows, over all ranks, may take an equal part of the log-probs."""
        self._num_rows, self._budget = num_rows, budget
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    @property
    def num_kept(self) -> int:
        """Log-probs that are held."""
        return sum(logprobs.numel() for _, logprobs in self._rows.values())

    def record(self, row: int, distribution: Tensor) -> None:
        """Keep the likeliest tokens of each position of a row's ``(T, V)`` log-probs."""
        positions, vocabulary = distribution.shape
        count = min(vocabulary, max(_FEWEST, self._budget // (self._num_rows * positions)))
        logprobs, tokens = distribution.topk(count, dim=-1)
        self._rows[row] = (tokens.int().cpu(), logprobs.float().cpu())

    def compare(self, row: int, distribution: Tensor) -> Moved:
        """A recorded row's ``(T, V)`` log-probs now, beside what they were."""
        tokens, before = (tensor.to(distribution.device) for tensor in self._rows[row])
        now = distribution.gather(-1, tokens.long()).double()
        whole = tokens.shape[-1] == distribution.shape[-1]
        p, q = (kept if whole else _with_rest(kept) for kept in (now, before.double()))
        return Moved(
            tv=total_variation(p, q),
            js=jensen_shannon(p, q),
            kl=kl_divergence(p, q if whole else torch.cat([q[:, :-1], q[:, -1:].clamp(min=_LEAST_REST)], dim=-1)),
            to_argmax=(p[:, 0].exp() - q[:, 0].exp()).clamp(min=0),  # the first is the likeliest at the start
        )

    def update(self, other: "StartDistributions") -> None:
        """Take over what another rank recorded."""
        self._rows |= other._rows

    def save(self, path: Path) -> None:
        """Write all rows into one ``.npz``, whole or not at all."""
        arrays = {
            f"{row}.{name}": tensor.numpy()
            for row, kept in self._rows.items()
            for name, tensor in zip(_ARRAYS, kept, strict=True)
        }
        written = path.with_suffix(".partial")
        with written.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        put_in_place(written, path)

    @classmethod
    def load(cls, path: Path, num_rows: int) -> "StartDistributions":
        """Read what :meth:`save` wrote; an error where it is gone, damaged, or of another probe set."""
        start = cls(num_rows)
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                for row in range(num_rows):
                    tokens, logprobs = (torch.from_numpy(arrays[f"{row}.{name}"]) for name in _ARRAYS)
                    start._rows[row] = (tokens, logprobs)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: what the model predicted when the stage began cannot be read ({error}), so probes have "
                "nothing to compare with. Resume with --probes null, or start again in another --output_dir."
            ) from error
        return start


def measure(
    model: nn.Module,
    probes: ProbeSet,
    engine: Engine,
    *,
    start: StartDistributions | None,
    autocast: Autocast = nullcontext,
) -> Reading:
    """Score this rank's share of a probe set in eval mode. Leaves no trace: modes and random states are put back.

    The chosen answers' predictions are compared with ``start``; rows that it lacks are recorded in it first. None
    leaves out TV, JS and the mass that moved.
    """
    reading = Reading()
    apart = start is not None and has_wide_vocabulary(model)
    with undisturbed(model, autocast) as device:
        for part in probes.batches(chosen_apart=apart):
            wide: tuple[Detail, ...] = ("distribution",) if start is not None and "chosen" in part.groups else ()
            scored = engine.logprobs(model, send_to_device(part.batch, device), want=(*_DETAILS, *wide))
            if probes.is_idle:
                continue
            means = scored.mean.double().tolist()
            for i, (row, group) in enumerate(zip(part.rows, part.groups, strict=True)):
                reading.answers.setdefault(group, {})[row] = means[i]
                if group == "chosen":
                    for name, values in _token_values(scored, i, row, start).items():
                        reading.tokens.setdefault(name, {})[row] = values.double().tolist()
    return reading


def has_wide_vocabulary(model: nn.Module) -> bool:
    """Whether whole distributions are held for one answer at a time only."""
    vocabulary = int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
    return vocabulary > _WIDE_VOCABULARY


def warm_up(model: nn.Module, probes: ProbeSet, engine: Engine) -> None:
    """Do once what only a first reading has to do: encode the prompts, and let the engine get to know the model."""
    probes.encode()
    with undisturbed(model) as device:
        one, _ = select_prompts(next(probes.batches()).batch, [0])
        engine.logprobs(model, send_to_device(one, device), want=_DETAILS)


@contextmanager
def undisturbed(model: nn.Module, autocast: Autocast = nullcontext) -> Iterator[torch.device]:
    """Inside, the model is in eval mode without gradients; modes and random states are put back. Gives its device."""
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), eval_mode(model), autocast():
        yield device


def wanted(scored: AnswerLogprobs, detail: Detail) -> Tensor:
    """A detail that the engine was asked for; ``(A, T)``, with the vocabulary behind for ``distribution``."""
    found: Tensor | None = getattr(scored, detail)
    assert found is not None
    return found


def scalars(lines: Sequence[ProbeLine]) -> dict[str, float]:
    """A reading for loggers and best-model choice: ``probes/delta/chosen``, ``probes/ece/chosen``, ..."""
    return {
        f"probes/{name}/{line['group']}": float(value)
        for line in lines
        for name, value in line.items()
        if isinstance(value, int | float) and name not in ("step", "n")
    }


def _token_values(scored: AnswerLogprobs, answer: int, row: int, start: StartDistributions | None) -> dict[str, Tensor]:
    """``(T,)`` values of one chosen answer's tokens."""
    mask = scored.mask[answer]
    found: dict[str, Tensor] = {name: wanted(scored, name)[answer][mask] for name in _DETAILS}
    if start is None:
        return found
    distribution = wanted(scored, "distribution")[answer][mask]
    if row not in start:
        start.record(row, distribution)
    return found | start.compare(row, distribution)._asdict()


def _with_rest(logprobs: Tensor) -> Tensor:
    """``(T, k + 1)``: the kept log-probs, and that of everything else together."""
    rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp(min=0)
    return torch.cat([logprobs, rest.log()], dim=-1)
