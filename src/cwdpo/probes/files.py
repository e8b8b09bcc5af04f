"""What a stage's readings are measured from, on disk: a resumed stage compares with the same start."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.probes.answers import ProbeRow
from cwdpo.probes.distributions import StartDistributions
from cwdpo.probes.thumbnails import write_thumbnails
from cwdpo.records.files import append_jsonl, write_json, write_jsonl

_PICTURES = "pictures"


class Start(NamedTuple):
    """What a stage's readings and examples are compared with."""

    means: dict[str, float]
    """Mean lbar of each group, nats per token."""

    greedy: list[str] | None
    """What the model itself said to each row."""

    on_policy: list[str] | None
    """An answer to each row, sampled from the model at temperature 1."""

    examples: dict[str, Any] | None
    """Log-probs of the examples' tokens, see :data:`cwdpo.probes.examples.Numbers`; None in runs of old versions."""

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
        append_jsonl(
            self.directory / "answers.jsonl",
            (
                {"row": probe.index, "source": probe.row.source, "group": answer.group, "text": answer.text}
                for probe in rows
                for answer in probe.answers
            ),
        )

    def write_start(self, start: Start) -> None:
        """Keep what the stage began with; ``start.json`` comes last, so that with it all is there."""
        start.distributions.save(self.directory / "start.npz")
        kept = start._asdict()
        del kept["distributions"]
        write_json(self.directory / "start.json", kept)

    def read_start(self, num_rows: int) -> Start:
        """What :meth:`write_start` kept.

        Raises:
            UserError: they are gone or damaged.
        """
        try:
            found = json.loads((self.directory / "start.json").read_text(encoding="utf-8"))
            means, greedy, on_policy = dict(found["means"]), found["greedy"], found.get("on_policy")
            examples, seconds = found.get("examples"), float(found.get("end_seconds", 0.0))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory}: what the stage's probes began with cannot be read ({error}). Begin the run anew "
                "in another --output_dir."
            ) from error
        distributions = StartDistributions.load(self.directory / "start.npz", num_rows)
        return Start(means, greedy, on_policy, examples, seconds, distributions)

    @property
    def examples(self) -> Path:
        """Some answers token by token, one row a line; pictures are named relative to the file's directory."""
        return self.directory / "examples.jsonl"

    def write_examples(
        self, rows: Sequence[Row], lines: Callable[[Sequence[Sequence[str]]], Iterable[Mapping[str, Any]]]
    ) -> None:
        """Write the examples whole, after their pictures.

        Args:
            rows: whose pictures are copied.
            lines: the lines, given the names of each row's pictures.
        """
        names = write_thumbnails(rows, self.directory / _PICTURES)
        write_jsonl(self.examples, lines([[f"{_PICTURES}/{name}" for name in of_row] for of_row in names]))

    def weights(self, step: int) -> Path:
        """Weights of the reading at this step, where they are kept."""
        return self.directory / f"weights-{step:08d}.safetensors"

    def save_weights(self, model: nn.Module, step: int) -> None:
        """Write all weights that train, whole or not at all."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trained_weights(model).items()}
        written = self.weights(step).with_suffix(".partial")
        save_file(weights, written)
        written.replace(self.weights(step))

    def restore_weights(self, model: nn.Module, step: int) -> None:
        """Put the weights of a reading back, all of them or an error.

        Raises:
            UserError: the file is gone or damaged.
        """
        try:
            saved = load_file(self.weights(step))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.weights(step)}: a reading's weights cannot be read ({error}).") from error
        weights = trained_weights(model)
        assert saved.keys() == weights.keys(), "the model trains other weights than it did when they were saved"
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(saved[name])

    def keep_only(self, steps: set[int]) -> None:
        """Remove the weights of all other steps' readings."""
        for path in self.directory.glob("weights-*.safetensors"):
            if int(path.stem.removeprefix("weights-")) not in steps:
                path.unlink()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that training changes, once, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
