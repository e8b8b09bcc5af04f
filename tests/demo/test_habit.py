"""The grid of the demo's habit: it reads, and its runs are those of the grid that the results come from."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cwdpo.cli import compare
from cwdpo.cli.app import app
from cwdpo.compare.grid import START, cells, read_grid, recipe_of
from cwdpo.demo.habit import LEARNING_RATES, write_grid

HEADLINE = Path(__file__).parents[2] / "examples" / "regimes" / "headline.yaml"


def test_its_runs_are_those_of_the_headline(tmp_path: Path) -> None:
    own, headline = read_grid(write_grid(tmp_path)), read_grid(HEADLINE)
    assert own.worlds["habit"] == headline.worlds["habit"]
    for cell in cells(own):
        if cell.method == START:
            continue
        mine, theirs = (recipe_of(grid, cell, {}, tmp_path / "run") for grid in (own, headline))
        assert mine.stage1 == theirs.stage1
        assert mine.stage2 == theirs.stage2
        shared = {name: mine.trainer[name] for name in theirs.trainer if name != "logging_steps"}
        assert shared == {name: value for name, value in theirs.trainer.items() if name != "logging_steps"}
        assert mine.trainer["learning_rate"] in LEARNING_RATES


@pytest.mark.parametrize("small", [True, False])
def test_the_seed_and_the_size_are_those_asked_for(tmp_path: Path, small: bool) -> None:
    grid = read_grid(write_grid(tmp_path, seed=3, small=small))
    assert grid.seeds == [3]
    assert ("scenes" in grid.worlds["habit"]) is small
    recipes = [recipe_of(grid, cell, {}, tmp_path / "run") for cell in cells(grid) if cell.method != START]
    assert {recipe.trainer["max_steps"] for recipe in recipes} == {2 if small else 80}


def test_the_command_compares_in_a_directory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(compare, "compare", lambda *args, **more: called.append((args, more)))
    answered = CliRunner().invoke(app, ["demo", "--habit", "--small", "--seed", "2", "--out", str(tmp_path / "h")])
    assert answered.exit_code == 0, answered.output
    (((grid, out), more),) = called
    assert (grid, out) == (tmp_path / "h" / "grid.yaml", tmp_path / "h")
    assert read_grid(grid).seeds == [2]
    assert more["jobs"] in (1, 2)
