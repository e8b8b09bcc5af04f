"""What a stage's readings are measured from, on disk: a resumed stage compares with the same start."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cwdpo.errors import UserError
from cwdpo.probes.answers import ProbeRow
from cwdpo.probes.distributions import StartDistributions
from cwdpo.records.files import append_jsonl, write_json


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

    def write_start(
        self, means: Mapping[str, float], greedy: Sequence[str] | None, distributions: StartDistributions
    ) -> None:
        """Keep the first reading; ``start.json`` comes last, so that with it all is there."""
        distributions.save(self.directory / "start.npz")
        write_json(self.directory / "start.json", {"means": dict(means), "greedy": greedy})

    def read_start(self, num_rows: int) -> tuple[dict[str, float], list[str] | None, StartDistributions]:
        """The first reading's means, the greedy answers and the predictions.

        Raises:
            UserError: they are gone or damaged.
        """
        try:
            found = json.loads((self.directory / "start.json").read_text(encoding="utf-8"))
            means, greedy = dict(found["means"]), found["greedy"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.directory}: what the stage's probes began with cannot be read ({error}). Begin the run anew "
                "in another --output_dir."
            ) from error
        return means, greedy, StartDistributions.load(self.directory / "start.npz", num_rows)

    def best(self, step: int) -> Path:
        """Weights of the best reading, if it was at this step."""
        return self.directory / f"best-{step:08d}.safetensors"

    def save_best(self, model: nn.Module, step: int) -> None:
        """Write all weights that train, whole or not at all."""
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trained_weights(model).items()}
        written = self.best(step).with_suffix(".partial")
        save_file(weights, written)
        written.replace(self.best(step))

    def restore_best(self, model: nn.Module, step: int) -> None:
        """Put the weights of the best reading back, all of them or an error.

        Raises:
            UserError: the file is gone or damaged.
        """
        try:
            saved = load_file(self.best(step))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.best(step)}: the best reading's weights cannot be read ({error}).") from error
        weights = trained_weights(model)
        assert saved.keys() == weights.keys(), "the model trains other weights than it did when they were saved"
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(saved[name])

    def keep_only(self, steps: set[int]) -> None:
        """Remove the weights of all other steps' readings."""
        for path in self.directory.glob("best-*.safetensors"):
            if int(path.stem.removeprefix("best-")) not in steps:
                path.unlink()


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that training changes, once, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
