"""The evaluation at the end of a run: checked first, measured once, and again where question or model are new."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import disc_data

from cwdpo.config.recipe import DataConfig, EvaluateConfig, ModelConfig, Recipe, Stage1Config
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.data.check import CheckReport
from cwdpo.errors import ConfigError, DataError
from cwdpo.recipes import run_recipe
from cwdpo.recipes.evaluating import check_evaluation, evaluate_run, is_evaluated
from cwdpo.recipes.preflight import check_recipe
from cwdpo.records import RunDirectory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return disc_data.write(tmp_path / "data", disc_data.records(8))


@pytest.fixture
def recipe(data: Path, tmp_path: Path, tiny: Callable[[str], Path]) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path=str(tiny("llava"))),
        data=DataConfig(train=str(data)),
        stage1=Stage1Config(objective="plain"),
        probes=None,
        evaluate=EvaluateConfig(data=str(data), rows=3, generate=False),
        trainer={"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "logging_steps": 1},
        output_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def finished(recipe: Recipe, tiny: Callable[[str], Path]) -> RunDirectory:
    """A run whose only stage left the model that it began with."""
    run = RunDirectory.open(recipe.output_dir, resume=False)
    run.recipe.write_text(dump_recipe(recipe))
    run.stage("stage1").symlink_to(tiny("llava"))
    run.mark_finished("stage1")
    return run


@pytest.mark.slow
def test_a_run_ends_with_its_evaluation_and_the_page_shows_it(recipe: Recipe) -> None:
    steps: list[str] = []
    run = run_recipe(recipe, on_evaluation=lambda what, done, total: steps.append(what))
    found = json.loads(run.evaluation.read_text())
    assert found["rows"] == 3
    assert found["against"] == recipe.model.name_or_path
    assert {one["name"] for one in found["measures"]} >= {"logprob_chosen", "drift_tv", "reward_accuracy"}
    assert "Did it help?" in run.report.read_text()
    assert set(steps) == {"base: given answers", "model: given answers"}
    before = run.evaluation.stat().st_mtime_ns
    run_recipe(recipe, resume=True)
    assert run.evaluation.stat().st_mtime_ns == before
    assert recipe.evaluate is not None
    run_recipe(replace(recipe, evaluate=replace(recipe.evaluate, rows=2)), resume=True)
    assert [json.loads(path.read_text())["rows"] for path in run.evaluations()] == [3, 2]


def test_what_is_there_and_fits_is_not_measured_again(
    recipe: Recipe, finished: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def measured(settings: Any, progress: Any) -> dict[str, Any]:
        calls.append(settings)
        return {"question": settings.question(), "words": "Nothing."}

    monkeypatch.setattr("cwdpo.recipes.evaluating.evaluate_model", measured)
    assert not is_evaluated(finished, recipe)
    for _ in range(2):
        evaluate_run(finished, recipe, lambda *_: None)
        assert is_evaluated(finished, recipe)
    assert len(calls) == 1
    assert recipe.evaluate is not None
    other = replace(recipe, evaluate=replace(recipe.evaluate, generate=True, max_new_tokens=7))
    assert not is_evaluated(finished, other)
    evaluate_run(finished, other, lambda *_: None)
    assert calls[1].max_new_tokens == 7
    assert [path.name for path in finished.evaluations()] == ["evaluation.json", "evaluation-2.json"]
    assert is_evaluated(finished, recipe)
    later = finished.finished_at("stage1") + 10**9
    os.utime(finished.checkpoints("stage1").with_suffix(".done"), ns=(later, later))
    os.utime(finished.evaluation, ns=(later - 1, later - 1))
    assert not is_evaluated(finished, recipe)  # the model is newer
    assert is_evaluated(finished, replace(recipe, evaluate=None))


@pytest.mark.slow
def test_mistakes_are_found_before_training(recipe: Recipe, tmp_path: Path) -> None:
    check_evaluation(recipe)
    assert recipe.evaluate is not None
    (tmp_path / "bad.jsonl").write_text('{"prompt": "What?", "chosen": "A dog.", "options": ["a cat", "a bird"]}\n')
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "lost.jsonl").write_text('{"prompt": "What?", "chosen": "A dog.", "image": "lost.png"}\n')
    for change, message in (
        ({"data": str(tmp_path / "bad.jsonl")}, "is not one of the row's 2 options"),
        ({"data": str(tmp_path / "gone.jsonl")}, "no such file"),
        ({"data": str(tmp_path / "lost.jsonl")}, r"lost.jsonl:1: .*lost.png"),
        ({"vocabulary": str(tmp_path / "none.txt")}, "holds no object"),
    ):
        broken = replace(recipe, evaluate=replace(recipe.evaluate, **change))
        with pytest.raises(DataError, match=message):
            check_evaluation(broken)
        with pytest.raises(DataError, match=message):
            run_recipe(broken)
        assert not Path(recipe.output_dir).exists()


def test_the_check_of_a_recipe_looks_at_its_rows(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    assert recipe.evaluate is not None
    held_out = disc_data.write(tmp_path / "held_out", disc_data.records(2))
    changed = replace(recipe, evaluate=replace(recipe.evaluate, data=str(held_out)))
    (tmp_path / "r.yaml").write_text(dump_recipe(changed))
    seen: list[Path] = []

    def check(file: Path, *_: object) -> CheckReport:
        seen.append(file)
        return CheckReport(str(file))

    check_recipe(tmp_path / "r.yaml", check)
    assert seen == [data, held_out]


def test_the_section_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {name_or_path: m/x}\ndata: {train: t.jsonl}\nstage1: {}\nevaluate: {data: e.jsonl, rows: 0}\n"
    )
    with pytest.raises(ConfigError, match=r"evaluate\.rows is 0"):
        read_recipe(path)
    path.write_text(path.read_text().replace("rows: 0", "vocabulary: objects.txt"))
    found = read_recipe(path).evaluate
    assert found == EvaluateConfig(data=str(tmp_path / "e.jsonl"), vocabulary=str(tmp_path / "objects.txt"))
    assert read_recipe(path, ["--evaluate", "null"]).evaluate is None
