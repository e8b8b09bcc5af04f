"""The rows of a run and Python's garbage collector."""

import gc
import json
from pathlib import Path

import pytest

from cwdpo.config.recipe import DataConfig, ModelConfig, Recipe, Stage1Config
from cwdpo.errors import DataError
from cwdpo.recipes.run import data_of_run

GOOD = {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}


def recipe_of(*records: object, directory: Path) -> Recipe:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Recipe(
        model=ModelConfig(name_or_path="none"),
        data=DataConfig(train=str(path)),
        stage1=Stage1Config(objective="plain"),
        output_dir=str(directory / "run"),
    )


def test_the_collector_leaves_rows_out_while_they_are_in_use(tmp_path: Path) -> None:
    with data_of_run(recipe_of(GOOD, GOOD, directory=tmp_path)) as (rows, eval_rows):
        assert (len(rows), eval_rows) == (2, None)
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
        assert not any(row is rows[0] for row in gc.get_objects())
    assert gc.get_freeze_count() == 0
    assert any(row is rows[0] for row in gc.get_objects())


def test_after_a_bad_row_it_is_as_before(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="chosen"), data_of_run(recipe_of(GOOD, {"prompt": "?"}, directory=tmp_path)):
        pass
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
