"""The callbacks of a stage: one list, in one order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import disc_data
from transformers import TrainerCallback

from cwdpo.config.recipe import DataConfig, ModelConfig, ProbesConfig, Recipe, Stage2Config
from cwdpo.recipes import run_recipe
from cwdpo.recipes.stages import stage_trainer


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
        "TokenCount",
        "BucketEpoch",
        "NewIntervals",
        "MetricsRecorder",
        "TensorBoardRecorder",
        "StopOnSignal",
        "Users",
        "WallTime",
        "Probing",
    ]
