"""The callbacks of a stage: one list, in one order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import disc_data
from transformers import TrainerCallback

from cwdpo.config.recipe import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    ProbesConfig,
    Recipe,
    Stage1Config,
    Stage2Config,
)
from cwdpo.recipes import run_recipe
from cwdpo.recipes.stages import stage_arguments, stage_trainer
from cwdpo.records import RunDirectory


class Users(TrainerCallback):
    """One that the user brings."""


@pytest.mark.slow
def test_every_stage_has_its_callbacks_in_one_order(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Any] = []

    def remembered(*words: Any) -> Any:
        trainers.append(stage_trainer(*words))
        return trainers[-1]

    monkeypatch.setattr("cwdpo.recipes.stages.stage_trainer", remembered)
    recipe = Recipe(
        model=ModelConfig(name_or_path=str(tiny("llava"))),
        data=DataConfig(train=str(disc_data.write(tmp_path, disc_data.records(4)))),
        stage2=Stage2Config(),
        probes=ProbesConfig(rows=2, groups=["rejected"]),
        trainer={"max_steps": 1, "use_cpu": True},
        output_dir=str(tmp_path / "run"),
    )
    run_recipe(recipe, callbacks=[Users()])
    assert [type(callback).__name__ for callback in trainers[0].callback_handler.callbacks] == [
        "DefaultFlowCallback",
        "StepMetrics",
        "TokenCount",
        "BucketEpoch",
        "UsedWeights",
        "LostUpdates",
        "NewIntervals",
        "MetricsRecorder",
        "TensorBoardRecorder",
        "StopOnSignal",
        "Users",
        "WallTime",
        "Probing",
        "FiniteSteps",
    ]


@pytest.mark.parametrize(
    ("lora", "given", "rates"),
    [
        (None, {}, (1e-5, 5e-7)),
        (LoraConfig(), {}, (1e-4, 5e-6)),
        (LoraConfig(), {"learning_rate": 3e-5, "num_train_epochs": 2}, (3e-5, 3e-5)),
    ],
)
def test_a_recipe_without_a_learning_rate_has_one_that_fits_the_stage(
    tmp_path: Path, lora: LoraConfig | None, given: dict[str, Any], rates: tuple[float, float]
) -> None:
    recipe = Recipe(
        model=ModelConfig(name_or_path="m", lora=lora),
        data=DataConfig(train="rows.jsonl"),
        stage1=Stage1Config(),
        stage2=Stage2Config(),
        trainer={"use_cpu": True, **given},
    )
    arguments = [
        stage_arguments(recipe, RunDirectory(tmp_path), stage, has_eval=False) for stage in ("stage1", "stage2")
    ]
    assert tuple(one.learning_rate for one in arguments) == rates
    assert {one.num_train_epochs for one in arguments} == {given.get("num_train_epochs", 1)}
