"""Prompts in whole runs: those that may not share a pass, and those that print the date."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support import disc_data
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo.config.recipe import DataConfig, ModelConfig, NegativesConfig, ProbesConfig, Recipe, Stage2Config
from cwdpo.negatives.candidates import read_refreshes
from cwdpo.recipes import run_recipe
from cwdpo.records import read_jsonl

Tiny = Callable[[str], Path]


def recipe(model: Path, data: Path, out: Path, *, steps: int = 2) -> Recipe:
    return Recipe(
        model=ModelConfig(name_or_path=str(model)),
        data=DataConfig(train=str(data)),
        stage2=Stage2Config(),
        negatives=NegativesConfig(on_policy_fraction=1.0, max_new_tokens=8),
        probes=ProbesConfig(rows=4, every=1),
        trainer={"max_steps": steps, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True},
        output_dir=str(out),
    )


@pytest.mark.slow
def test_rows_whose_prompts_may_not_share_a_pass_train_with_probes_and_sampling(tiny: Tiny, tmp_path: Path) -> None:
    """Mllama, whose prompts with 0, 1 and 2 images need passes of their own, in every batch of every part."""
    rows = disc_data.records(4)
    del rows[0]["images"]
    rows[3]["images"] = ["3.png", "2.png"]
    run = run_recipe(recipe(tiny("mllama"), disc_data.write(tmp_path / "data", rows), tmp_path / "run"))
    assert [line["step"] for line in read_jsonl(run.metrics).objects] == [1, 2]
    readings = read_jsonl(run.probes).objects
    assert {line["n"] for line in readings if line["group"] in ("chosen", "greedy", "on_policy")} == {4}
    sampled = read_refreshes(run.negatives)
    assert {candidate.row for candidate in sampled[0].candidates} == {0, 1, 2, 3}


class Clock:
    """In the place of ``datetime`` in the module that starts runs."""

    def __init__(self, now: str) -> None:
        self.time, self.fromisoformat = datetime.fromisoformat(now), datetime.fromisoformat

    def now(self) -> datetime:
        return self.time


class PowerCut(TrainerCallback):
    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step == 3:
            raise RuntimeError("power cut")


@pytest.mark.slow
def test_a_run_prints_one_date_on_whatever_day_it_goes_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny("llava"), model)
    template = next(path for path in model.iterdir() if path.name == "chat_template.jinja")
    template.write_text("{{ strftime_now('Today is %d %b %Y, %H:%M. ') }}" + template.read_text())
    data = disc_data.write(tmp_path / "data", disc_data.records(8))

    def train(out: str, now: str, *callbacks: TrainerCallback, resume: bool = False) -> list[dict[str, Any]]:
        monkeypatch.setattr("cwdpo.recipes.run.datetime", Clock(now))
        settings = replace(recipe(model, data, tmp_path / out, steps=4), negatives=None, probes=None)
        settings.trainer["save_steps"] = 2
        run = run_recipe(settings, resume=resume, callbacks=callbacks)
        assert run.kept("prompts") == {"time": "2026-11-27T23:59:00"}
        return read_jsonl(run.metrics).objects

    straight = train("straight", "2026-11-27T23:59:00")
    with pytest.raises(RuntimeError, match="power cut"):
        train("broken", "2026-11-27T23:59:00", PowerCut())
    assert train("broken", "2026-11-28T00:01:00", resume=True) == straight
