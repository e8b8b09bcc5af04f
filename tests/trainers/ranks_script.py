"""Run under torchrun: recipes one after the other, on however many ranks there are; see support.rank_runs."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cwdpo.config.recipe_file import read_recipe
from cwdpo.errors import UserError
from cwdpo.recipes import run_recipe
from cwdpo.trainers.finite import local_part


class StopAt(TrainerCallback):
    """Ends a stage after one of its steps, without a checkpoint."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if Path(str(args.output_dir)).name == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt(f"stopped in {self.stage}")


class Spoil(TrainerCallback):
    """Makes the gradient of a step not finite, in the last process's part of it alone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: object, state: TrainerState, control: object, **kwargs: Any) -> None:
        last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if last and state.global_step + 1 == self.step:
            gradients = (weight.grad for weight in kwargs["model"].parameters() if weight.grad is not None)
            for gradient in gradients:
                local_part(gradient).fill_(math.nan)


def option(settings: list[str], name: str) -> str | None:
    """The value of ``--name=value``, which is ours, not the recipe's."""
    return next((each.partition("=")[2] for each in settings if each.startswith(f"--{name}=")), None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks, runs = int(sys.argv[1]), json.loads(sys.argv[2])
    assert int(os.environ["WORLD_SIZE"]) == ranks
    for name, (recipe, *settings) in runs.items():
        resume = "--resume" in settings
        given = [each for each in settings if each != "--resume" and not each.startswith(("--stop=", "--spoil="))]
        callbacks: list[TrainerCallback] = []
        if stop := option(settings, "stop"):
            callbacks.append(StopAt(stop.partition(":")[0], int(stop.partition(":")[2])))
        if spoil := option(settings, "spoil"):
            callbacks.append(Spoil(int(spoil)))
        try:
            run_recipe(read_recipe(recipe, given), resume=resume, callbacks=callbacks)
            sys.stdout.write(f"{name}: done\n")
        except (UserError, KeyboardInterrupt) as error:
            sys.stdout.write(f"{name}: {error}\n")
    assert torch.distributed.get_world_size() == ranks if ranks > 1 else True
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # so that neither leaves while the other still needs it
        os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
