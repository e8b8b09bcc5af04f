"""Probes of a model that comes to harm: what the stage leaves, and that nothing but the model breaks."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
from cwdpo.errors import UserError
from cwdpo.records import read_jsonl

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(sixteen_rows: list[Row]) -> list[Row]:
    """What is trained on; the probe set is some of them."""
    return sixteen_rows


@pytest.mark.parametrize("crash", [None, 3])
def test_a_stage_that_a_finding_ends_leaves_the_model_from_before_the_harm(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int | None
) -> None:
    monkeypatch.setattr("cwdpo.probes.callback.diagnose", found_at(4, 5, 6, 7))
    settings = SAVING | {"learning_rate": 3e-3, "max_steps": 9}
    watched: dict[str, Any] = {"stop_on": ["squeezing"], "every": 1}
    if crash is not None:
        broken = make_trainer(2, callbacks=[Ruin(3), Crash(crash)], **settings)
        watch(broken, rows, tmp_path / "run", **watched)
        with pytest.raises(RuntimeError, match="power cut"):
            broken.train()
    kept = KeepWeights()
    trainer = make_trainer(2, callbacks=[Ruin(3), kept], **settings)
    kept.at[0] = weights(trainer)
    probing = watch(trainer, rows, tmp_path / "run", **watched)
    trainer.train(resume_from_checkpoint=crash is not None)
    assert trainer.state.global_step == 5
    note = probing.finish()
    chosen = {x["step"]: x["mean_logprob"] for x in lines(tmp_path / "run") if x["group"] == "chosen"}
    assert note["kept_step"] == max(chosen, key=chosen.__getitem__) < 3
    if note["kept_step"] in kept.at:
        assert_same(weights(trainer), kept.at[note["kept_step"]])


class Diverge(TrainerCallback):
    """Makes every prediction no number, from a step on."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                model.get_output_embeddings().weight.fill_(math.nan)


def test_a_model_that_diverges_is_read_as_null_and_breaks_nothing(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    trainer = make_trainer(2, callbacks=[Diverge()], **STEPS)
    probing = watch(trainer, rows, tmp_path / "run", every=1, keep_best=True)
    with pytest.raises(UserError, match="step 4: the loss is not a finite number"):
        trainer.train()
    found = [line for line in lines(tmp_path / "run") if line["group"] == "chosen"]
    assert [line["mean_logprob"] is None for line in found] == [False] * 3 + [True]
    assert (found[-1]["ece"], found[-1]["reliability"]) == (None, [])
    assert probing.finish()["kept_step"] < 3


def test_lines_that_are_no_readings_do_not_stop_a_resumed_stage(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"every": 1, "keep_best": True, "stop_on": ["squeezing"]}
    broken = make_trainer(2, callbacks=[Crash(3)], **SAVING)
    watch(broken, rows, tmp_path / "run", **settings)
    with pytest.raises(RuntimeError, match="power cut"):
        broken.train()
    with (tmp_path / "run/probes.jsonl").open("a") as file:
        strange = [
            {},
            {"stage": "stage2"},
            {"stage": "stage2", "step": 1},
            {"stage": "stage2", "step": "1", "group": 3},
        ]
        file.write("".join(json.dumps(line) + "\n" for line in strange) + '{"stage": "sta')
    resumed = make_trainer(2, **SAVING)
    watch(resumed, rows, tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    readings = [line for line in read_jsonl(tmp_path / "run/probes.jsonl").objects if line.get("group") == "chosen"]
    assert [line["step"] for line in readings] == list(range(7))


def test_what_the_model_says_by_chance_is_asked_about_again_and_again(
    make_trainer: Make, rows: list[Row], tmp_path: Path
) -> None:
    sampled: Callable[..., list[str]] = lambda model, some: [f"sampled {len(row.chosen)}" for row in some]  # noqa: E731
    trainer = make_trainer(2, **STEPS)
    watch(trainer, rows, tmp_path / "run", every=3, sampled=sampled)
    trainer.train()
    found = [line for line in lines(tmp_path / "run") if line["group"] == "on_policy"]
    assert [(line["step"], line["n"]) for line in found] == [(0, 5), (3, 5), (6, 5)]
    asked = read_jsonl(tmp_path / "run/probes/stage2/answers.jsonl").objects
    assert [line["text"] for line in asked if line["group"] == "on_policy"] == sampled(None, rows[:5])
