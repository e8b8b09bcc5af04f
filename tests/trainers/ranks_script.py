"""Run under torchrun: recipes one after the other, on however many ranks there are; see support.rank_runs."""

import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cwdpo.config.recipe_file import read_recipe
from cwdpo.errors import UserError
from cwdpo.recipes import run_recipe


class StopAt(TrainerCallback):
    """Ends a stage after one of its steps, without a checkpoint."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if Path(str(args.output_dir)).name == self.stage and state.global_step == self.step:
            raise KeyboardInterrupt(f"stopped in {self.stage}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks, runs = int(sys.argv[1]), json.loads(sys.argv[2])
    assert int(os.environ["WORLD_SIZE"]) == ranks
    for name, (recipe, *settings) in runs.items():
        resume = "--resume" in settings
        stop = next((each.partition("=")[2] for each in settings if each.startswith("--stop=")), None)
        given = [each for each in settings if each != "--resume" and not each.startswith("--stop=")]
        stops = [] if stop is None else [StopAt(stop.partition(":")[0], int(stop.partition(":")[2]))]
        try:
            run_recipe(read_recipe(recipe, given), resume=resume, callbacks=stops)
            sys.stdout.write(f"{name}: done\n")
        except (UserError, KeyboardInterrupt) as error:
            sys.stdout.write(f"{name}: {error}\n")
    assert torch.distributed.get_world_size() == ranks if ranks > 1 else True
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # so that neither leaves while the other still needs it
        os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
