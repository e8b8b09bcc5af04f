"""No stage leaves a model that is not made of numbers."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cwdpo.errors import UserError
from cwdpo.models.sources import some
from cwdpo.records.lines import Stage
from cwdpo.records.run_directory import RunDirectory
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.checkpoints import whole_checkpoints


def refuse_broken_weights(trainer: AnswerTrainer, run: RunDirectory, stage: Stage) -> None:
    """Look at every weight that the stage trained, before it is saved as the stage's result.

    Raises:
        UserError: some are infinite or no number; the message says since when, what is still good, and what to change.
    """
    assert trainer.model is not None
    broken = sorted({name for names in gather_object([_broken(trainer.model)]) for name in names})
    if not broken:
        return
    good = next((path for path in whole_checkpoints(run.checkpoints(stage)) if _is_finite(path)), None)
    raise UserError(
        f"{stage} has ruined the model, which is not saved: {len(broken)} of its trained weights are infinite or no "
        f"number ({some(broken)}). {_since(trainer)} "
        + (f"The last good checkpoint is {good}. " if good else "There is no good checkpoint of this stage. ")
        + f"Begin anew with another --output_dir and a lower learning rate (--{stage}.trainer.learning_rate, which was "
        f"{trainer.args.learning_rate:g}); in float16 write --model.dtype bfloat16 as well."
    )


def _broken(model: nn.Module) -> list[str]:
    """Names of trained weights, as far as this process has them, that are not finite everywhere."""
    trained = ((name, _here(weight)) for name, weight in model.named_parameters() if weight.requires_grad)
    return [name for name, weight in trained if not torch.isfinite(weight).all()]


def _here(weight: Tensor) -> Tensor:
    """This process's part of a weight that is divided among several."""
    local = getattr(weight, "to_local", None)
    return (local() if local is not None else weight).detach()


def _since(trainer: AnswerTrainer) -> str:
    """The first log line of the stage that shows it."""
    for line in trainer.state.log_history:
        for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not math.isfinite(line.get(name, 0.0)):
                return f"The {what} was first not finite at step {line['step']}, as far as the log knows."
    return "The log shows no loss that is not finite, so it happened after its last line."


def _is_finite(checkpoint: Path) -> bool:
    try:
        return all(torch.isfinite(weight).all() for weight in _saved(checkpoint))
    except (OSError, SafetensorError):
        return False


def _saved(checkpoint: Path) -> Iterator[Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise OSError(f"{checkpoint} has no weights that can be looked at")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no dictionary: it has keys alone
                yield file.get_tensor(name)
