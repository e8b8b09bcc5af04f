"""What probes keep of a stage on disk, to resume from too: its start, and weights of readings that it may leave."""

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cwdpo.config.recipe import ProbesConfig
from cwdpo.errors import UserError
from cwdpo.probes.examples import Numbers
from cwdpo.probes.measuring import StartDistributions
from cwdpo.probes.probe_set import ProbeRow
from cwdpo.records import ProbeGroup, ProbeLine, append_jsonl, put_in_place, write_json

_HARDEST_FIRST = ("gentle", "rejected")

logger = logging.getLogger(__name__)


class Keeper:
    """Holds the weights of a few readings: the best and the safest one, and what they were at the newest checkpoint."""

    def __init__(self, files: "StageFiles", settings: ProbesConfig, *, is_main: bool) -> None:
        """Of several processes the main one writes."""
        self._files, self._settings, self._is_main = files, settings, is_main
        self._at_checkpoint: set[int] = set()
        self._forget()

    def to_leave(self, *, stopped: bool) -> int | None:
        """Step of the reading whose model the stage leaves, where a finding stopped it or not; None for the last."""
        if stopped:
            return self._safest.step
        return self._best.step if self._settings.keep_best else None

    def update(self, step: int, reading: Sequence[ProbeLine], model: nn.Module) -> None:
        """Take in a new reading, and write the model's weights if they may be wanted."""
        wanted = self._wanted()
        self._best.update(step, reading)
        self._safest.update(step, reading)
        if self._wanted() != wanted:
            if self._is_main and step in self._wanted():
                self._files.save_weights(model, step)
            self._remove_others()

    def checkpointed(self) -> None:
        """A checkpoint was written: no resumed run begins before it."""
        self._at_checkpoint = self._wanted()
        self._remove_others()

    def resume(self, lines: Sequence[ProbeLine]) -> None:
        """Find the best and the safest of an interrupted run's readings again."""
        for step, reading in groupby(lines, key=lambda line: line["step"]):
            whole = list(reading)
            self._best.update(step, whole)
            self._safest.update(step, whole)
        self._at_checkpoint = self._wanted()
        if gone := [step for step in sorted(self._wanted()) if not self._files.weights(step).exists()]:
            message = "the weights of step %d, which this stage may have to leave, are gone: later readings alone count"
            logger.warning(message, gone[0])
            self._forget()

    def _forget(self) -> None:
        self._best, self._safest = BestReading(self._settings.tolerance), SafestReading()
        self._at_checkpoint = set()

    def _wanted(self) -> set[int]:
        """Steps whose weights may be wanted: of the best reading, and of the safest where a finding may stop."""
        best = self._best.step if self._settings.keep_best else None
        safest = self._safest.step if self._settings.stop_on else None
        return {step for step in (best, safest) if step is not None}

    def _remove_others(self) -> None:
        if self._is_main:
            self._files.keep_only(self._wanted() | self._at_checkpoint)


@dataclass
class BestReading:
    """The reading with the largest :func:`margin` among those that did not pay for it with the chosen answers.

    A reading qualifies while its chosen answers' mean lbar is at most ``tolerance`` below the highest of all readings
    so far: a margin that grows because everything falls, the chosen answers too, is no gain. When a new highest
    disqualifies the best one, the reading that set it takes its place.
    """

    tolerance: float
    """Nats per token."""

    step: int | None = None
    margin: float = -math.inf
    chosen: float = -math.inf
    highest: float = -math.inf
    """Mean lbar of the chosen answers: at that reading, and the highest so far."""

    def update(self, step: int, reading: Sequence[ProbeLine]) -> bool:
        """Take in a new reading; True if it is the best now."""
        chosen, grown = _levels(reading).get("chosen", math.nan), margin(reading)
        if not (math.isfinite(chosen) and math.isfinite(grown)):
            return False
        self.highest = max(self.highest, chosen)
        floor = self.highest - self.tolerance
        if chosen < floor or (self.chosen >= floor and grown <= self.margin):
            return False
        self.step, self.margin, self.chosen = step, grown, chosen
        return True


@dataclass
class SafestReading:
    """The reading whose chosen answers were likeliest, the first of several: the last before any harm, so the best
    one to leave where a stage is ended because its right answers lose probability."""

    step: int | None = None
    chosen: float = -math.inf
    """Their mean lbar at that reading, nats per token."""

    def update(self, step: int, reading: Sequence[ProbeLine]) -> bool:
        """Take in a new reading; True if it is the safest now."""
        chosen = _levels(reading).get("chosen", math.nan)
        if not chosen > self.chosen:  # NaN too
            return False
        self.step, self.chosen = step, chosen
        return True


def margin(reading: Sequence[ProbeLine]) -> float:
    """Mean lbar of the chosen answers, less that of the hardest negatives (gentle, else rejected) where there are some;
    of the lines of one reading, nats per token."""
    means = _levels(reading)
    negatives = [means[group] for group in _HARDEST_FIRST if group in means]
    return means["chosen"] - negatives[0] if negatives else means["chosen"]


def _levels(reading: Sequence[ProbeLine]) -> dict[str, float]:
    """Mean lbar of each group, nats per token; NaN where it was not finite, for which files have null."""
    found: dict[str, float | None] = {line["group"]: line["mean_logprob"] for line in reading}
    return {group: math.nan if mean is None else mean for group, mean in found.items()}


class Start(NamedTuple):
    """What a stage's readings and examples are compared with."""

    means: Mapping[ProbeGroup, float]
    """Mean lbar of each group, nats per token."""

    greedy: list[str] | None
    on_policy: list[str] | None
    """The model's own answers to the rows: greedy, and sampled at temperature 1."""

    examples: Numbers | None
    """Log-probs of the examples' tokens; None in runs of old versions."""

    end_seconds: float
    """What the examples will cost when the stage ends."""

    distributions: StartDistributions


@dataclass(frozen=True)
class StageFiles:
    """The files that probes keep for one stage."""

    directory: Path

    def clear(self) -> None:
        """The stage begins: whatever an earlier attempt left goes."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)

    def write_answers(self, rows: Sequence[ProbeRow]) -> None:
        """List every answer that is measured, for people: ``answers.jsonl``."""
        lines = (
            {"row": probe.index, "source": probe.row.source, "group": answer.group, "text": answer.text}
            for probe in rows
            for answer in probe.answers
        )
        append_jsonl(self.directory / "answers.jsonl", lines)

    def write_start(self, start: Start) -> None:
        """Keep what the stage began with; ``start.json`` comes last, so that with it all is there."""
        start.distributions.save(self.directory / "start.npz")
        kept = start._asdict()
        del kept["distributions"]
        write_json(self.directory / "start.json", kept)

    def read_start(self, num_rows: int) -> Start:
        """What :meth:`write_start` kept; an error where it is gone or damaged."""
        try:
            found = json.loads((self.directory / "start.json").read_text(encoding="utf-8"))
            means, greedy, on_policy = dict(found["means"]), found["greedy"], found.get("on_policy")
            examples, seconds = found.get("examples"), float(found.get("end_seconds", 0.0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory}: what the stage's probes began with cannot be read ({error}). Start the run again "
                "in another --output_dir."
            ) from error
        distributions = StartDistributions.load(self.directory / "start.npz", num_rows)
        return Start(means, greedy, on_policy, examples, seconds, distributions)

    def weights(self, step: int) -> Path:
        return self.directory / f"weights-{step:08d}.safetensors"

    def save_weights(self, model: nn.Module, step: int) -> None:
        """Write all weights that train, whole or not at all."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in _trained_weights(model).items()}
        written = self.weights(step).with_suffix(".partial")
        save_file(weights, written)
        put_in_place(written, self.weights(step))

    def restore_weights(self, model: nn.Module, step: int) -> None:
        """Put the weights of a reading back, all of them or an error."""
        try:
            saved = load_file(self.weights(step))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights(step)}: a reading's weights cannot be read ({error}).") from error
        weights = _trained_weights(model)
        assert saved.keys() == weights.keys(), "the model trains other weights than it did when they were saved"
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(saved[name])

    def keep_only(self, steps: set[int]) -> None:
        """Remove the weights of all other steps' readings."""
        for path in self.directory.glob("weights-*.safetensors"):
            if int(path.stem.removeprefix("weights-")) not in steps:
                path.unlink()


def _trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that training changes, once, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
