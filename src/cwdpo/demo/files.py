"""Files to play with: the demo's model, pictures, rows and a recipe, laid out as a user's own would be."""

import shutil
from pathlib import Path
from typing import NamedTuple

from cwdpo.demo.plans import base_checkpoint
from cwdpo.demo.world import write_world
from cwdpo.errors import UserError
from cwdpo.records import write_text

TRAIN_ROWS = 400
HELD_OUT_ROWS = 100


class PlayFiles(NamedTuple):
    """Where the files lie."""

    model: Path
    """A checkpoint with its processor, of the LLaVA class; it knows the pictures a little already."""

    train: Path
    held_out: Path
    image: Path
    """One of the held-out pictures."""

    recipe: Path


def write_files(directory: Path, *, seed: int = 0) -> PlayFiles:
    """Write the demo's model, drawn pictures with their rows, and a recipe into a new directory.

    The same seed writes the same rows and pictures. A UserError where the directory holds something already.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already, and nothing is overwritten. Give another directory.")
    world = write_world(directory, seed=seed, train=TRAIN_ROWS, eval=HELD_OUT_ROWS)
    world.scenes.unlink()  # the truth, which only the demo's own checker reads
    held_out = world.eval.rename(directory / "held_out.jsonl")
    model = directory / "tiny-vlm"
    shutil.copytree(base_checkpoint(), model, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = directory / "demo.yaml"
    write_text(recipe, _RECIPE)
    return PlayFiles(model, world.train, held_out, min(world.images.glob("eval-*.png")), recipe)


_RECIPE = """\
# The demo's CW-DPO on these files. A model this small learns in all its weights, at learning rates that would ruin a
# large one: `cwdpo init` writes a recipe with those of a real model.
model:
  name_or_path: tiny-vlm
  dtype: float32
  freeze_vision: false

data:
  train: train.jsonl
  eval: held_out.jsonl

# Stage 1, smooth: the chosen answers, and gentle negatives that must not become likely.
stage1:
  objective: constrained
  trainer: {learning_rate: 5e-4, num_train_epochs: 3}

# Stage 2, cool: DPO in which easy rejected answers have little weight.
stage2:
  beta: 0.1
  cooling: {floor: gentle}
  trainer: {learning_rate: 3e-4, num_train_epochs: 3}

trainer:
  per_device_train_batch_size: 16
  adam_beta2: 0.98
  warmup_steps: 5
  logging_steps: 1           # each step is a reading for the diagnosis
  save_strategy: 'no'
  eval_strategy: 'no'        # the probes read the held-out rows
  use_cpu: true

seed: 0
output_dir: runs/demo-files
"""
