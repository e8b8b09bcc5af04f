"""Scalars for TensorBoard: those of the run's files, once each, also after an interruption; other loggers by name."""

import logging
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import disc_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from cwdpo.config.recipe import DataConfig, ModelConfig, ProbesConfig, Recipe, Stage1Config, Stage2Config
from cwdpo.errors import ConfigError
from cwdpo.recipes import run_recipe
from cwdpo.recipes.preflight import check_settings
from cwdpo.recipes.stages import wanted_loggers
from cwdpo.records import RunDirectory, read_jsonl

Tiny = Callable[[str], Path]
Scalars = dict[tuple[str, int], list[float]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_data.write(tmp_path_factory.mktemp("data"), disc_data.records(16, text_only_every=5))


def recipe(tiny: Tiny, data: Path, out: Path, **trainer: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path=str(tiny("llava"))),
        data=DataConfig(train=str(data), eval=str(data), stage1_fraction=0.5),
        stage1=Stage1Config(),
        stage2=Stage2Config(),
        probes=ProbesConfig(rows=3, every=1),
        trainer={
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "use_cpu": True,
            "save_strategy": "steps",
            "save_steps": 2,
            **trainer,
        },
        output_dir=str(out),
    )


def shown(directory: Path) -> Scalars:
    """What TensorBoard shows: (name, step) -> every value that it has of it."""
    board = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    found: Scalars = {}
    for name in board.Tags()["scalars"]:
        for event in board.Scalars(name):
            found.setdefault((name, event.step), []).append(event.value)
    return found


def recorded(run: RunDirectory, stage: str) -> Scalars:
    """The same from the run's own files."""
    found: Scalars = {}
    for line in read_jsonl(run.metrics).objects:
        for name, value in line.items():
            again = name == "epoch" and "loss" not in line
            if line["stage"] == stage and name not in ("stage", "step", "cooling/histogram") and not again:
                found.setdefault((name, line["step"]), []).append(value)
    for line in read_jsonl(run.probes).objects:
        for name, value in line.items():
            if line["stage"] == stage and name not in ("stage", "step", "group", "n", "reliability"):
                found.setdefault((f"probes/{name}/{line['group']}", line["step"]), []).append(value)
    return found


def assert_same(one: Scalars, other: Scalars) -> None:
    assert one.keys() == other.keys()
    for key, values in one.items():
        assert values == pytest.approx(other[key], rel=1e-6, nan_ok=True), key


class Crash(TrainerCallback):
    def __init__(self, at: int) -> None:
        self.left = at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("power cut")


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [[2], [4, 2], [8]])
def test_tensorboard_shows_what_the_files_say(tiny: Tiny, data: Path, tmp_path: Path, crashes: Sequence[int]) -> None:
    """Broken off before the first checkpoint, after it and once more, and in stage 2."""
    settings = recipe(tiny, data, tmp_path / "run")
    for number, crash in enumerate(crashes):
        with pytest.raises(RuntimeError, match="power cut"):
            run_recipe(settings, resume=number > 0, callbacks=[Crash(crash)])
    run = run_recipe(settings, resume=bool(crashes))
    for stage in ("stage1", "stage2"):
        found = shown(run.tensorboard(stage))  # type: ignore[arg-type]
        assert_same(found, recorded(run, stage))
        assert {len(values) for values in found.values()} == {1}
        assert {("loss", 4), ("eval_loss", 2), ("probes/delta/chosen", 0), ("probes/ece/chosen", 4)} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("stage_says", [False, True])
def test_none_is_none(tiny: Tiny, data: Path, tmp_path: Path, stage_says: bool) -> None:
    settings = recipe(tiny, data, tmp_path / "run", max_steps=1, **({} if stage_says else {"report_to": "none"}))
    if stage_says:
        settings = replace(settings, stage1=Stage1Config(trainer={"report_to": "none"}))
    run = run_recipe(settings)
    assert run.tensorboard("stage2").exists() == stage_says
    assert not run.tensorboard("stage1").exists()


def test_what_report_to_means() -> None:
    assert wanted_loggers({}) == ["tensorboard"]
    assert wanted_loggers({"report_to": "tensorboard"}) == ["tensorboard"]
    assert "tensorboard" in wanted_loggers({"report_to": "all"})
    assert wanted_loggers({"report_to": []}) == wanted_loggers({"report_to": None}) == []
    with pytest.raises(ConfigError, match=r"unknown logger `wandbb`. Did you mean `wandb`\?"):
        wanted_loggers({"report_to": ["tensorboard", "wandbb"]})


@pytest.mark.parametrize(("name", "install"), [("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow")])
def test_a_logger_that_is_not_installed_ends_it_before_it_begins(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, install: str
) -> None:
    monkeypatch.setattr("cwdpo.recipes.stages.get_available_reporting_integrations", lambda: ["tensorboard"])
    settings = recipe(tiny, data, tmp_path / "run")
    asks = replace(settings, stage2=Stage2Config(trainer={"report_to": ["tensorboard", name]}))
    with pytest.raises(ConfigError, match="not installed") as error:
        run_recipe(asks)
    assert f"Run `pip install {install}`" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_without_tensorboard_a_run_says_so_and_goes_on(
    tiny: Tiny, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("cwdpo.recipes.stages.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert wanted_loggers({}) == []
    assert "Run `pip install tensorboard`" in caplog.text
    asks = recipe(tiny, data, tmp_path / "run", report_to="tensorboard")
    with pytest.raises(ConfigError, match=r"Run `pip install tensorboard`"):
        check_settings(asks, RunDirectory(tmp_path / "run"))


@pytest.mark.slow
def test_the_command_exits_with_two(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{name_or_path: {tiny('llava')}}}\ndata: {{train: {data}}}\nstage2: {{}}\n")
    command = [sys.executable, "-m", "cwdpo", "train", str(path), "--trainer.report_to", "neptune"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "run")], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "--trainer.report_to: trainer.report_to names `neptune`, which is not installed. Run `pip install neptune`, or "
        "take it out of trainer.report_to."
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tensorboard_warns_nobody(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_recipe(recipe(tiny, data, tmp_path / "run", max_steps=1))
    assert not [str(w.message) for w in caught if "tensor" in w.filename.lower() or "protobuf" in w.filename]
