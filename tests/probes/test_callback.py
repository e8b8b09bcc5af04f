"""Probes beside training: they change nothing, survive interruptions, keep the best model and end a stage."""

import json
from pathlib import Path
from typing import Any

import pytest
from probes.watching import (
    SAVING,
    STEPS,
    Crash,
    KeepWeights,
    Make,
    Ruin,
    assert_same,
    found_at,
    lines,
    watch,
    weights,
)
from transformers import TrainerCallback

from cwdpo.data.rows import Row
from cwdpo.engine import FeatureCache, make_engine
from cwdpo.errors import ConfigError, UserError
from cwdpo.probes.snapshots import margin
from cwdpo.records import read_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(sixteen_rows: list[Row]) -> list[Row]:
    """What is trained on; the probe set is some of them."""
    return sixteen_rows


@pytest.mark.parametrize(("name", "stage"), [("qwen2_5_vl", 1), ("llava", 2), ("idefics3", 2)])
@pytest.mark.parametrize("lora", [False, True])
def test_training_is_the_same_with_probes_and_without(
    make_trainer: Make, rows: list[Row], tmp_path: Path, name: str, stage: int, lora: bool
) -> None:
    plain = make_trainer(stage, name, lora=lora, out="plain", **STEPS)
    plain.train()
    probed = make_trainer(stage, name, lora=lora, out="probed", **STEPS)
    watch(probed, rows, tmp_path / "run", stage=f"stage{stage}", every=1, keep_best=True)
    probed.train()
    assert_same(weights(plain), weights(probed))
    found = lines(tmp_path / "run")
    assert sorted({line["step"] for line in found}) == [0, 1, 2, 3, 4, 5, 6]
    assert found[-1]["delta"] != 0
    metrics = read_jsonl(tmp_path / "run/metrics.jsonl").objects
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert not [name for line in metrics for name in line if name.startswith("probes")]
    logged = [entry for entry in probed.state.log_history if "probes/delta/chosen" in entry]
    assert [entry["step"] for entry in logged] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("crash", [1, 3, 5])
def test_resumed_readings_equal_uninterrupted_ones(
    make_trainer: Make, rows: list[Row], tmp_path: Path, crash: int
) -> None:
    """Broken off before the first checkpoint, and after readings that the checkpoint does not hold."""
    straight = make_trainer(2, out="straight", **SAVING)
    watch(straight, rows, tmp_path / "one", every=1)
    straight.train()
    broken = make_trainer(2, out="broken", callbacks=[Crash(crash)], **SAVING)
    watch(broken, rows, tmp_path / "two", every=1)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = make_trainer(2, out="broken", **SAVING)
    watch(resumed, rows, tmp_path / "two", every=1, greedy=crash < 2)  # later it is read, not written again
    resumed.train(resume_from_checkpoint=crash > 1)
    assert lines(tmp_path / "two") == lines(tmp_path / "one")
    assert_same(weights(straight), weights(resumed))


def test_a_resumed_stage_without_its_start_says_so(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    first = make_trainer(2, **SAVING)
    watch(first, rows, tmp_path / "run")
    first.train()
    (tmp_path / "run/probes/stage2/start.json").unlink()
    again = make_trainer(2, **SAVING | {"max_steps": 8})
    watch(again, rows, tmp_path / "run")
    with pytest.raises(UserError, match="cannot be read"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("ruin", [3, 4])
@pytest.mark.parametrize("crash", [None, 3])
def test_the_best_readings_model_is_kept(
    make_trainer: Make,
    rows: list[Row],
    tmp_path: Path,
    crash: int | None,
    ruin: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of a model that is ruined at a step; also where the best reading came before an interruption."""
    settings = SAVING | {"learning_rate": 3e-3}
    if crash is not None:
        broken = make_trainer(2, callbacks=[Ruin(ruin), Crash(crash)], **settings)
        watch(broken, rows, tmp_path / "run", keep_best=True, every=1)
        with pytest.raises(RuntimeError, match="power cut"):
            broken.train()
    kept = KeepWeights()
    trainer = make_trainer(2, callbacks=[Ruin(ruin), kept], **settings)
    kept.at[0] = weights(trainer)
    probing = watch(trainer, rows, tmp_path / "run", keep_best=True, every=1)
    trainer.train(resume_from_checkpoint=crash is not None)
    files = list((tmp_path / "run/probes/stage2").glob("weights-*"))
    assert 1 <= len(files) <= 2
    note = probing.finish()
    readings: dict[int, list[Any]] = {}
    for line in lines(tmp_path / "run"):
        readings.setdefault(line["step"], []).append(line)
    assert sorted(readings) == list(range(7))
    assert note["kept_step"] == best_by_hand(readings)
    assert 0 < note["kept_step"] < ruin
    assert "are gone" not in caplog.text  # what was the best at the checkpoint is still there
    if note["kept_step"] in kept.at:
        assert_same(weights(trainer), kept.at[note["kept_step"]])
    assert note["probes"]["readings"] == 7


def best_by_hand(readings: dict[int, list[Any]]) -> int:
    """The rule of docs/probes.md, read again from the start for every reading."""
    chosen = {step: reading[0]["mean_logprob"] for step, reading in readings.items()}
    best = -1
    for step in readings:
        floor = max(level for s, level in chosen.items() if s <= step) - 0.02
        replaces = best < 0 or chosen[best] < floor or margin(readings[step]) > margin(readings[best])
        if chosen[step] >= floor and replaces:
            best = step
    return best


def test_a_finding_ends_the_stage_after_its_patience(
    make_trainer: Make,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("cwdpo.probes.callback.diagnose", found_at(1, 3, 4, 5, 6))
    trainer = make_trainer(2, **STEPS | {"max_steps": 9})
    probing = watch(trainer, rows, tmp_path / "run", every=1, stop_on=["squeezing"], patience=2)
    trainer.train()
    assert trainer.state.global_step == 4  # step 1 was alone
    stopped = probing.finish()["stopped"]
    assert stopped == {
        "finding": "squeezing",
        "stage": "stage2",
        "step": 4,
        "readings": 2,
        "evidence": "It fell.",
        "advice": "Cool it.",
    }
    assert "stage2 ends at step 4: squeezing in 2 readings in a row. It fell. Cool it." in caplog.text


@pytest.mark.parametrize("stop_on", [[], ["overconfidence"]])
def test_other_findings_end_nothing(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_on: list[str]
) -> None:
    monkeypatch.setattr("cwdpo.probes.callback.diagnose", found_at(1, 2, 3, 4, 5, 6))
    trainer = make_trainer(2, **STEPS)
    probing = watch(trainer, rows, tmp_path / "run", every=1, stop_on=stop_on)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "stopped" not in probing.finish()


def test_patience_goes_on_after_an_interruption(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwdpo.probes.callback.diagnose", found_at(3, 4, 5, 6, 7))
    settings = {"every": 1, "stop_on": ["squeezing"], "patience": 3}
    broken = make_trainer(2, callbacks=[Crash(4)], **SAVING | {"max_steps": 9})
    watch(broken, rows, tmp_path / "run", **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = make_trainer(2, **SAVING | {"max_steps": 9})
    watch(resumed, rows, tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5


def test_readings_for_the_best_model_count_before_and_after_an_interruption(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cwdpo.probes.callback.diagnose", found_at(*range(1, 10)))
    choosing = {"eval_rows": rows[:3], "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    arguments = SAVING | choosing | {"max_steps": 9, "metric_for_best_model": "probes/delta/chosen"}
    settings = {"every": 3, "stop_on": ["squeezing"], "patience": 3}
    whole = make_trainer(2, **arguments, out="whole")
    watch(whole, rows, tmp_path / "whole run", **settings)
    whole.train()
    assert whole.state.global_step == 4  # after readings at 2, 3 and 4, of which only that of 3 is due
    broken = make_trainer(2, callbacks=[Crash(3)], **arguments)
    watch(broken, rows, tmp_path / "run", **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    resumed = make_trainer(2, **arguments)
    probing = watch(resumed, rows, tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert probing.finish()["stopped"]["readings"] == 3
    assert lines(tmp_path / "run") == lines(tmp_path / "whole run")


def test_probes_reach_evaluations_and_choose_the_best_model(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    trainer = make_trainer(
        2,
        **SAVING | {"learning_rate": 0.3},
        eval_rows=rows[:3],
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="probes/delta/chosen",
        greater_is_better=True,
    )
    watch(trainer, rows, tmp_path / "run", every=3)
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "eval_probes/delta/chosen" in entry]
    assert [entry["step"] for entry in found] == [2, 4, 6]
    values = {entry["step"]: entry["eval_probes/delta/chosen"] for entry in found}
    assert values == {
        line["step"]: line["delta"]
        for line in lines(tmp_path / "run")
        if line["group"] == "chosen" and line["step"] in (2, 4, 6)
    }
    assert trainer.state.best_metric == max(values.values())
    assert {line["step"] for line in lines(tmp_path / "run")} == {0, 2, 3, 4, 6}


def test_a_stage_that_something_else_ends_has_a_last_reading(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    class StopAt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 3

    for interrupted, steps in ((False, {0, 3}), (True, {0})):
        trainer = make_trainer(2, **STEPS)
        trainer.add_callback(StopAt())
        probing = watch(trainer, rows, tmp_path / "run", every=5)
        probing._interrupted = lambda interrupted=interrupted: interrupted
        trainer.train()
        assert {line["step"] for line in lines(tmp_path / "run")} == steps


def test_one_of_two_ways_to_choose_the_best_model(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    trainer = make_trainer(
        2, **SAVING, eval_rows=rows, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True
    )
    with pytest.raises(ConfigError, match="Take one of them out"):
        watch(trainer, rows, tmp_path / "run", keep_best=True)


def test_what_is_asked_is_written_down(make_trainer: Make, rows: list[Row], tmp_path: Path) -> None:
    trainer = make_trainer(2, **STEPS | {"max_steps": 1})
    watch(trainer, rows, tmp_path / "run", groups=["gentle", "greedy"])
    trainer.train()
    answers = read_jsonl(tmp_path / "run/probes/stage2/answers.jsonl").objects
    assert {answer["group"] for answer in answers} == {"chosen", "gentle", "greedy"}
    assert {"row": 0, "source": rows[0].source, "group": "gentle", "text": rows[0].gentle} in answers
    start = json.loads((tmp_path / "run/probes/stage2/start.json").read_text())
    assert start["greedy"] == [f"model says {len(row.chosen)}" for row in rows[:5]]
    first = {line["group"]: line["mean_logprob"] for line in lines(tmp_path / "run") if line["step"] == 0}
    assert start["means"] == first


def test_a_frozen_tower_sees_each_picture_of_the_probes_once(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    trainer = make_trainer(2, lora=True, **STEPS)
    trainer.engine = make_engine("auto", features=FeatureCache())
    probing = watch(trainer, rows[:3], tmp_path / "run", greedy=False)
    trainer.measure_reference()
    encoded: list[int] = []
    before = dict(trainer.engine.report["features"])
    probing._begin()
    trainer.model.get_base_model().get_encoder(modality="image").register_forward_hook(lambda *_: encoded.append(1))
    probing._read(1)
    assert encoded == []
    assert trainer.engine.report["features"] == before  # training's own have nothing to do with it
