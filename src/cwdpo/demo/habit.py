"""The regime where preferences pay, as a grid for ``cwdpo compare``: a habit, and pairs of the model's own captions."""

from pathlib import Path
from typing import Any

import yaml

from cwdpo.demo.plans import OPTIMISER
from cwdpo.records import write_text

LEARNING_RATES = (3e-5, 3e-4)
"""One at which every method does well, and one ten times as high."""


def write_grid(directory: Path, *, seed: int = 0, small: bool = False) -> Path:
    """Write a grid and its recipe into a directory, and give the grid's path.

    SFT on chosen, DPO and CW-DPO are each trained at two learning rates, from a start model that names small things
    that are not there. ``small`` takes two steps on a few pairs: it shows that all works, not what it gives.
    """
    world: dict[str, Any] = {"start": "habit", "pairs": "two"}
    if small:
        world |= {"scenes": 24, "held_out": 6, "captions": 2}
    recipe = {
        "model": {"name_or_path": "start", "dtype": "float32", "freeze_vision": False},
        "data": {"train": "pairs.jsonl"},
        "stage2": {"beta": 0.1, "cooling": {"floor": "chosen - 2 tau"}},
        "probes": None,
        "trainer": {
            "max_steps": 2 if small else 80,
            "per_device_train_batch_size": 16,
            "warmup_steps": 0 if small else 10,
            "report_to": "none",
            "use_cpu": True,
            **OPTIMISER,
        },
    }
    grid = {
        "recipe": "recipe.yaml",
        "make": "cwdpo.demo.regimes:make",
        "measure": "cwdpo.demo.regimes:measure",
        "worlds": {"habit": world},
        "methods": {
            "SFT on chosen": {"stage1": {"objective": "plain"}, "stage2": None},
            "DPO": {"stage2.cooling": None},
            "CW-DPO": {},
        },
        "settings": {"trainer.learning_rate": list(LEARNING_RATES)},
        "seeds": [seed],
        "target": "win",
        "measures": ["exact", "hallucination", "win", "win_sampled", "ece", "tv"],
        "lower_is_better": ["hallucination", "ece", "tv"],
        "baseline": "SFT on chosen",
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    path = directory / "grid.yaml"
    write_text(path, yaml.safe_dump(grid, sort_keys=False))
    return path
