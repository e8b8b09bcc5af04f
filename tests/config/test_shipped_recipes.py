"""Every recipe that we ship can be read, names only settings that exist, and keeps what its comments promise."""

import logging
import math
from pathlib import Path

import pytest

from cwdpo.compare.grid import START, cells, read_grid, recipe_of
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.trainers.arguments import argument_types

ROOT = Path(__file__).parents[2]
GRIDS = sorted(path for path in ROOT.glob("examples/**/*.yaml") if "\nmethods:" in path.read_text(encoding="utf-8"))
SHIPPED = sorted({*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("examples/**/*.yaml")} - {*GRIDS})


def test_there_are_recipes() -> None:
    assert {"qwen2_5_vl_3b_lora.yaml", "tiny_full.yaml"} <= {path.name for path in SHIPPED}
    assert {"floors.yaml", "headline.yaml", "regimes.yaml"} <= {path.name for path in GRIDS}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_reads_without_a_warning(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = read_recipe(path, trainer_fields=argument_types)
    assert caplog.text == ""
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.name)
def test_every_run_of_a_grid_has_a_recipe(path: Path, tmp_path: Path) -> None:
    grid = read_grid(path)
    recipes = [recipe_of(grid, cell, {}, tmp_path) for cell in cells(grid) if cell.method != START]
    seeds = len(grid.seeds) + (grid.tuning_seed is not None)
    settings = math.prod(len(values) for values in grid.settings.values())
    assert len(recipes) == len(grid.worlds) * seeds * len(grid.methods) * settings


def test_the_gpu_recipe_is_what_its_name_says() -> None:
    recipe = read_recipe(ROOT / "recipes" / "qwen2_5_vl_3b_lora.yaml")
    assert recipe.model.dtype == "bfloat16"
    assert recipe.model.lora is not None
    assert recipe.model.lora.target_modules == "language"
    assert recipe.data.stage1_fraction == 0.75
    assert recipe.trainer["activation_checkpointing"] == "auto"
    assert recipe.stage1 is not None
    assert recipe.stage1.trainer == {"learning_rate": 0.0001}
