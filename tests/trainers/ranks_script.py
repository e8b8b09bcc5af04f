"""Run under torchrun: recipes one after the other, on however many ranks there are; see support.rank_runs."""

import json
import os
import sys

import torch

from cwdpo.config.recipe_file import read_recipe
from cwdpo.errors import UserError
from cwdpo.recipes import run_recipe

if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks, runs = int(sys.argv[1]), json.loads(sys.argv[2])
    assert int(os.environ["WORLD_SIZE"]) == ranks
    for name, (recipe, *settings) in runs.items():
        resume = "--resume" in settings
        try:
            run_recipe(read_recipe(recipe, [each for each in settings if each != "--resume"]), resume=resume)
            print(f"{name}: done")
        except (UserError, KeyboardInterrupt) as error:
            print(f"{name}: {error}")
    assert torch.distributed.get_world_size() == ranks if ranks > 1 else True
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # so that neither leaves while the other still needs it
        os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
