"""Probes in a recipe: on by default, from held-out rows, what ended a stage in findings.json, the same on two ranks."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from support import disc_data
from transformers import TrainerCallback, TrainerState

from cwdpo.config.recipe import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    NegativesConfig,
    ProbesConfig,
    Recipe,
    Stage1Config,
    Stage2Config,
)
from cwdpo.config.recipe_file import dump_recipe
from cwdpo.data.reading import read_rows
from cwdpo.diagnosis import Finding
from cwdpo.errors import ConfigError
from cwdpo.evaluation.likelihood import probe_checkpoints
from cwdpo.probes.size import whole
from cwdpo.probes.snapshots import StageFiles
from cwdpo.recipes import run_recipe
from cwdpo.recipes.resuming import resumed_recipe
from cwdpo.recipes.stages import choose_probe_rows
from cwdpo.records import RunDirectory, Stage, read_jsonl

pytestmark = pytest.mark.slow

Tiny = Callable[[str], Path]
END = ("stage2", 4, "chosen")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_data.write(tmp_path_factory.mktemp("data"), disc_data.records(16, text_only_every=5))


def recipe(tiny: Tiny, data: Path, out: Path, *, lora: bool = False, **probes: Any) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path=str(tiny("llava")), lora=LoraConfig(r=4, alpha=8) if lora else None),
        data=DataConfig(train=str(data), stage1_fraction=0.5),
        stage1=Stage1Config(),
        stage2=Stage2Config(),
        probes=ProbesConfig(**probes),
        trainer={
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "use_cpu": True,
        },
        output_dir=str(out),
    )


def test_both_stages_have_readings_and_the_report_draws_them(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    run = run_recipe(recipe(tiny, data, tmp_path / "run", rows=4))
    lines = read_jsonl(run.probes).objects
    ends = {("stage1", 0), ("stage1", 4), ("stage2", 0), ("stage2", 4)}
    assert ends <= {(line["stage"], line["step"]) for line in lines}
    groups = {line["group"] for line in lines}
    own = {"greedy", "on_policy"}
    assert groups == own | {"chosen", "rejected", "gentle", "shuffled", "other_answer", "other_image", "blank"}
    last = [line for line in lines if line["stage"] == "stage1"][-9:]
    first = [line for line in lines if line["stage"] == "stage2"][:9]
    assert {line["delta"] for line in first} == {0.0}  # each stage counts from its own start
    levels = [{x["group"]: x["mean_logprob"] for x in some if x["group"] not in own} for some in (last, first)]
    assert levels[0] == pytest.approx(levels[1], abs=1e-4)
    assert "Probes: how likely" in run.report.read_text()
    assert "not finite" not in run.report.read_text()  # histograms are no broken curves
    shown = read_jsonl(run.probe_files("stage2") / "examples.jsonl").objects
    assert [[answer["group"] for answer in line["answers"]] for line in shown] == [
        ["chosen", "rejected", "gentle", "greedy", "greedy_end"]
    ] * 4
    ends = [line["mean_logprob"] for line in lines if (line["stage"], line["step"], line["group"]) == END]
    means = [sum(line["answers"][0]["end"]) / len(line["answers"][0]["end"]) for line in shown]
    assert sum(means) / len(means) == pytest.approx(ends[0], abs=1e-4)
    assert json.loads(run.findings.read_text())["stopped"] == []


def test_probes_change_no_model(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    with_probes = recipe(tiny, data, tmp_path / "with", rows=3, every=1)
    without = replace(with_probes, probes=None, output_dir=str(tmp_path / "without"))
    runs = [run_recipe(with_probes), run_recipe(without)]
    for stage in ("stage1", "stage2"):
        one, other = ((run.stage(stage) / "model.safetensors").read_bytes() for run in runs)  # type: ignore[arg-type]
        assert one == other
    assert not runs[1].probes.exists()
    lines = [read_jsonl(run.metrics).objects for run in runs]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_weights_of_readings_go_also_where_the_run_is_killed_when_a_stage_has_ended(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: StageFiles, steps: set[int]) -> None:
        if not steps:
            raise RuntimeError("power cut")

    with_probes = recipe(tiny, data, tmp_path / "run", lora=True, rows=2, every=1, keep_best=True)
    with monkeypatch.context() as patched:
        patched.setattr(StageFiles, "keep_only", killed)
        with pytest.raises(RuntimeError, match="power cut"):
            run_recipe(with_probes)
    run = RunDirectory(tmp_path / "run")
    assert run.is_finished("stage1")
    assert list(run.root.glob("probes/stage1/weights-*"))
    run_recipe(with_probes, resume=True)
    assert not list(run.root.glob("probes/*/weights-*"))


def test_what_ended_a_stage_stands_in_findings(
    tiny: Tiny, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("squeezing", "It fell.", "Cool it.", "stage2", 2)]
    monkeypatch.setattr(
        "cwdpo.probes.callback.diagnose", lambda history, **_: found if history[0]["stage"] == "stage2" else []
    )
    run = run_recipe(
        recipe(tiny, data, tmp_path / "run", lora=True, rows=3, every=1, stop_on=["squeezing"], keep_best=True)
    )
    (stopped,) = json.loads(run.findings.read_text())["stopped"]
    assert (stopped["finding"], stopped["stage"], stopped["step"], stopped["evidence"]) == (
        "squeezing",
        "stage2",
        2,
        "It fell.",
    )
    assert [run.note(stage)["steps"] for stage in ("stage1", "stage2")] == [4, 2]  # type: ignore[arg-type]
    assert 0 <= run.note("stage2")["kept_step"] <= 2
    assert not list(run.root.glob("probes/*/weights-*"))
    kept = next(
        line["mean_logprob"]
        for line in read_jsonl(run.probes).objects
        if (line["stage"], line["step"], line["group"]) == ("stage2", run.note("stage2")["kept_step"], "chosen")
    )
    again = probe_checkpoints(str(run.stage("stage2")), data, num_rows=3, with_own_answers=False)
    assert again[0]["mean_logprob"] == pytest.approx(kept, abs=1e-4)


def test_resuming_with_another_probe_set_is_refused(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    first = recipe(tiny, data, tmp_path / "run", rows=3)
    run_recipe(first)
    with pytest.raises(ConfigError, match=r"probes\.rows = 3 and keeps it"):
        run_recipe(replace(first, probes=ProbesConfig(rows=4)), resume=True)


def test_held_out_rows_come_first_and_training_rows_are_reported(
    tiny: Tiny, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = read_rows(data)
    asks = recipe(tiny, data, tmp_path / "run", rows=3)
    with caplog.at_level(logging.WARNING):
        assert choose_probe_rows(asks, rows, rows[:2], whole(3)) == rows[:2]
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert len(choose_probe_rows(asks, rows, None, whole(3))) == 3
    assert "3 of the training rows" in caplog.text
    assert choose_probe_rows(replace(asks, probes=None), rows, None, whole(3)) == []


def test_a_checkpoint_beside_another(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    run = run_recipe(recipe(tiny, data, tmp_path / "run", rows=3))
    lines = probe_checkpoints(str(run.stage("stage2")), data, reference=str(tiny("llava")), num_rows=6)
    itself = probe_checkpoints(str(tiny("llava")), data, reference=str(tiny("llava")), num_rows=6)
    alone = probe_checkpoints(str(run.stage("stage2")), data, num_rows=6, with_own_answers=False)
    means = [{line["group"]: line["mean_logprob"] for line in some} for some in (lines, itself, alone)]
    assert {line["group"]: line["delta"] for line in lines} == pytest.approx(
        {group: means[0][group] - means[1][group] for group in means[0]}, abs=1e-6
    )
    assert {line["delta"] for line in itself} == {0.0}
    assert itself[0]["tv"] == 0.0
    assert lines[0]["tv"] > 0.01
    assert "greedy" in means[0]
    assert "greedy" not in means[2]
    assert "delta" not in alone[0]


def test_probes_drive_the_curriculum_and_a_resumed_run_repeats_it(tiny: Tiny, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    several = data.with_name("several.jsonl")
    several.write_text("".join(json.dumps(row | {"negatives": [f"No {row['id']}.", "A cube."]}) + "\n" for row in rows))

    def settings(out: str) -> Recipe:
        base = recipe(tiny, several, tmp_path / out, every=2, rows=4, groups=["chosen", "gentle"], tolerance=9.0)
        negatives = NegativesConfig(on_policy_fraction=0, per_prompt=1, refresh=3, curriculum="auto")
        trainer = base.trainer | {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
        return replace(base, stage1=None, negatives=negatives, trainer=trainer)

    class Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise RuntimeError("power cut")

    straight = run_recipe(settings("straight"))
    with pytest.raises(RuntimeError, match="power cut"):
        run_recipe(settings("broken"), callbacks=[Stop()])
    resumed = run_recipe(settings("broken"), resume=True)
    names = ("step", "loss", "negatives/level", "negatives/lbar", "logps_mean/rejected")
    one, other = (
        [{name: line[name] for name in names} for line in read_jsonl(run.metrics).objects if "loss" in line]
        for run in (straight, resumed)
    )
    assert one == other
    assert one[0]["negatives/level"] == 0
    assert one[-1]["negatives/level"] > 0  # grown or stalled, as no fall counts here


@pytest.mark.parametrize(("curriculum", "refused"), [("auto", True), (0.5, False)])
def test_readings_that_choose_negatives_may_not_change_within_a_run(
    tiny: Tiny, data: Path, tmp_path: Path, curriculum: Any, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    base = replace(recipe(tiny, data, tmp_path / "run", every=2), negatives=NegativesConfig(curriculum=curriculum))
    run = RunDirectory(tmp_path / "run")
    for stage in get_args(Stage):  # as if both had been trained
        run.stage(stage).mkdir(parents=True)
    run.mark_finished("stage1")
    checkpoint = run.checkpoints("stage2") / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    TrainerState().save_to_json(str(checkpoint / "trainer_state.json"))
    run.recipe.write_text(dump_recipe(base))
    changed = replace(base, probes=ProbesConfig(every=3))
    if refused:
        with pytest.raises(ConfigError, match=r"probes\.every.* 2"):
            resumed_recipe(run, changed)
    else:
        assert resumed_recipe(run, changed) == changed
        assert "probes.every is 3" in caplog.text
