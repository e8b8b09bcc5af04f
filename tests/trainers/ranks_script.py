"""Run under torchrun by test_two_ranks: one recipe on however many ranks there are."""

import os
import sys
from pathlib import Path

import torch

from cwdpo.config.recipe_file import read_recipe
from cwdpo.recipes import run_recipe

if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe, ranks = Path(sys.argv[1]), int(sys.argv[2])
    assert int(os.environ["WORLD_SIZE"]) == ranks
    run_recipe(read_recipe(recipe, sys.argv[3:]))
    assert torch.distributed.get_world_size() == ranks if ranks > 1 else True
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # so that neither leaves while the other still needs it
        os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts
