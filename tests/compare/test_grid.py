"""Grids as files: what runs follow from one, and what is wrong with one."""

from pathlib import Path
from typing import Any

import pytest

from cwdpo.compare.grid import START, Cell, Grid, cells, fingerprint, read_grid, recipe_of
from cwdpo.errors import ConfigError

RECIPE = "model: {name_or_path: m}\ndata: {train: rows.jsonl, eval: held.jsonl}\nstage2: {}\n"
GRID = """\
recipe: base.yaml
methods:
  DPO: {stage2.cooling: null}
  CW-DPO: {}
settings:
  trainer.learning_rate: [1e-4, 3e-4]
seeds: [0, 1]
tuning_seed: 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(RECIPE)
    return tmp_path


def read(folder: Path, text: str = GRID) -> Grid:
    (folder / "grid.yaml").write_text(text)
    return read_grid(folder / "grid.yaml")


def test_every_method_runs_with_every_setting_and_seed_the_tuning_seed_first(folder: Path) -> None:
    plan = list(cells(read(folder)))
    assert len(plan) == 3 * (1 + 2 * 2)
    assert [cell.seed for cell in plan] == [7] * 5 + [0] * 5 + [1] * 5
    assert plan[0].method == START
    assert plan[1] == Cell("data", 7, "DPO", (("trainer.learning_rate", 1e-4),))
    assert plan[1].directory(Path("o")) == Path("o/cells/data/seed-7/DPO/learning_rate_0.0001")
    assert len({cell.directory(Path("o")) for cell in plan}) == len(plan)


def test_a_run_has_the_settings_of_recipe_world_method_and_grid(folder: Path) -> None:
    grid = read(folder)
    cell = Cell("data", 1, "DPO", (("trainer.learning_rate", 3e-4),))
    recipe = recipe_of(grid, cell, {"data.train": "/other.jsonl"}, folder / "run")
    assert recipe.stage2 is not None
    assert recipe.stage2.cooling is None
    assert (recipe.trainer, recipe.seed) == ({"learning_rate": 3e-4}, 1)
    assert (recipe.data.train, recipe.data.eval) == ("/other.jsonl", str(folder / "held.jsonl"))


def test_a_run_is_another_when_anything_it_follows_from_changes(folder: Path) -> None:
    cell = Cell("data", 1, "DPO", (("trainer.learning_rate", 3e-4),))
    mark = fingerprint(read(folder), cell)
    assert fingerprint(read(folder, GRID.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")), cell) == mark
    assert fingerprint(read(folder, GRID.replace("cooling: null", "beta: 0.2")), cell) != mark
    assert fingerprint(read(folder, GRID + "measure: other:measure\n"), cell) != mark
    (folder / "base.yaml").write_text(RECIPE + "trainer: {max_steps: 3}\n")
    assert fingerprint(read(folder), cell) != mark


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base.yaml", "bsae.yaml"), "grid.yaml:1: there is no recipe"),
        (
            ("base.yaml", "base.yml"),
            "grid.yaml:1: there is no recipe {folder}/base.yml. Did you mean {folder}/base.yaml?",
        ),
        (("seeds:", "seeeds:"), "unknown key 'seeeds' - did you mean 'seeds'?"),
        (("seeds: [0, 1]", "seeds: [0, 0]"), "seeds must be different"),
        (("seeds: [0, 1]", "seeds: [7]"), "seeds must be different"),
        (("seeds: [0, 1]", "seeds: []"), "seeds must be different"),
        (("  DPO", "  start"), "none `start`, which is always measured"),
        (("[1e-4, 3e-4]", "[]"), "needs a list of values to try"),
        (("stage2.cooling:", "stage2.coolng:"), "grid.yaml:3: --stage2.coolng: unknown setting - did you mean"),
        (("seeds: [0, 1]", "seeds: [0, 0]"), "grid.yaml:7: seeds must be different"),
        (
            ("seeds: [0, 1]", "seeds: 2"),
            "grid.yaml:7: seeds is 2, but must be a list of whole numbers, su",
        ),
        (
            ("[1e-4, 3e-4]", "3e-6"),
            "grid.yaml:6: settings.trainer.learning_rate is 3e-06, but must be a list of values to try. Write [3e-06].",
        ),
        (
            ("CW-DPO: {}", "CW-DPO: null"),
            "grid.yaml:4: methods.CW-DPO is null, but must be a section of recipe settings. Write CW-DPO: {}.",
        ),
        (
            ("\n  DPO: {stage2.cooling: null}\n  CW-DPO: {}", " [DPO, CW-DPO]"),
            "grid.yaml:2: methods is a list, but must be a section with a line for each. Write DPO: "
            "{stage2.cooling: null}; {} alone changes nothing.",
        ),
        (("recipe: base.yaml\n", ""), "'recipe' is missing. Add it; it is the path of a recipe."),
        (("base.yaml", "grid.yaml"), "grid.yaml:1: {folder}/grid.yaml is a grid, and a recipe is needed."),
        (
            ("[1e-4, 3e-4]", "[3e-6, fast]"),
            "grid.yaml:6: --trainer.learning_rate: trainer.learning_rate is 'fast', but",
        ),
        (("trainer.learning_rate", "learning_rte"), "grid.yaml:6: --learning_rte: unknown setting - did you mean"),
        (("tuning_seed: 7", "baseline: IPO"), "baseline is 'IPO', which is none of the methods: DPO, CW-DPO"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(folder: Path, change: tuple[str, str], message: str) -> None:
    (folder / "grid.yaml").write_text(GRID.replace(*change))
    with pytest.raises(ConfigError) as refused:
        read_grid(folder / "grid.yaml", trainer_fields=lambda: {"learning_rate": float})
    assert message.replace("{folder}", str(folder)) in str(refused.value)


@pytest.mark.parametrize("settings", [{"stage2.betta": 0.1}, {"stage2.beta": -1}])
def test_a_wrong_setting_names_its_method(folder: Path, settings: dict[str, Any]) -> None:
    grid = read(folder)
    grid.methods["DPO"].update(settings)
    with pytest.raises(ConfigError, match=r"method 'DPO': .*stage2\.bet"):
        recipe_of(grid, Cell("data", 0, "DPO", ()), {}, folder)


def test_a_missing_grid_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: no such file\. Write a YAML file with"):
        read_grid(tmp_path / "none.yaml")
