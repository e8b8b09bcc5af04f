"""Prompts in whole runs: those that may not share a pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import disc_data

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
