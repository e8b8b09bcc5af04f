"""Two processes that divide a model (FSDP2) or its optimizer's state (ZeRO-2) train like one process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import disc_data
from support.rank_runs import ZERO_2, compare_metrics, compare_weights, launch
from transformers import AutoModelForImageTextToText

from cwdpo.models.checkpoints import find_damage

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

RECIPE = """
model: {{name_or_path: {model}, {more}}}
data: {{train: {data}, stage1_fraction: 0.5}}
stage1: {{objective: constrained, ceiling: 50.0, penalty: 0.3}}
stage2: {{beta: 0.3}}
probes: null
trainer: {{max_steps: 3, save_steps: 2, learning_rate: 1e-3, logging_steps: 1, use_cpu: true, weight_decay: 0.1,
  adam_epsilon: 1e-6}}
"""
"""With AdamW's own 1e-8, a gradient that is nothing but rounding moves its weight by some 1e-5."""

DIVISIONS = {
    "fsdp": ["--trainer.fsdp=true", "--trainer.fsdp_config={activation_checkpointing: true}"],
    "zero": [ZERO_2, "--trainer.activation_checkpointing=true"],
}


@pytest.fixture(scope="module")
def recipes(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of all weights, and of adapters; every second row has no image."""
    directory = tmp_path_factory.mktemp("recipes")
    data = disc_data.write(directory / "data", disc_data.records(16, text_only_every=2))
    found = {}
    for name, more in (("full", "freeze_vision: false"), ("lora", "lora: {r: 4, alpha: 8}")):
        found[name] = directory / f"{name}.yaml"
        found[name].write_text(RECIPE.format(model=tiny("llava"), data=data, more=more))
    return found


@pytest.fixture(scope="module")
def alone(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("alone")
    size = "--trainer.per_device_train_batch_size=4"
    checkpointing = "--trainer.activation_checkpointing=true"
    launch(1, {name: [path, f"--output_dir={out / name}", size, checkpointing] for name, path in recipes.items()})
    return out


@pytest.mark.parametrize("division", [*DIVISIONS])
def test_two_processes_train_like_one(
    division: str, recipes: dict[str, Path], alone: Path, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """Both stages, of all weights and of adapters; stopped behind a checkpoint and resumed; with rows that may leave a
    process without an image, with activation checkpointing, and with accumulated gradients."""
    rows = {
        "full": ["--trainer.per_device_train_batch_size=2"],
        "lora": ["--trainer.per_device_train_batch_size=1", "--trainer.gradient_accumulation_steps=2"],
    }
    runs = {}
    for name, path in recipes.items():
        run = [path, f"--output_dir={tmp_path / name}", *rows[name], *DIVISIONS[division]]
        runs |= {f"{name} begun": [*run, "--stop=stage2:3"], name: [*run, "--resume"]}
    said = launch(2, runs)
    for name in recipes:
        assert said.count(f"{name} begun: stopped in stage2") == 2
        assert said.count(f"{name}: done") == 2
        one, two = alone / name, tmp_path / name
        assert compare_metrics(one, two, ("loss", "grad_norm", "num_tokens", "rewards/margins", "cooling/p50")) == 6
        for stage in ("stage1", "stage2"):
            # ZeRO's weight decay moves weights that nothing uses, too
            compare_weights(one / stage, two / stage, start=tiny("llava") if name == "full" else None)
            assert find_damage(two / "checkpoints" / stage / "checkpoint-3", thorough=True) is None
        notes = [json.loads((out / "checkpoints" / "floor.json").read_text())["measured"] for out in (one, two)]
        assert notes[0] == pytest.approx(notes[1], abs=1e-5)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "full" / "stage2")
    bases = [(out / "lora" / "stage2" / "cwdpo_base.json").read_text() for out in (alone, tmp_path)]
    assert bases[0] == bases[1]


def test_processes_that_divide_a_model_skip_a_step_together(recipes: dict[str, Path], tmp_path: Path) -> None:
    """Where the gradient of one part is not finite, none makes the update; and without leave, all of them stop."""
    spoiled = [recipes["lora"], "--stage1=null", "--spoil=2"]
    skips = [*spoiled, "--trainer.on_nonfinite=skip"]
    launch(1, {"one": [*skips, f"--output_dir={tmp_path / 'one'}", "--trainer.per_device_train_batch_size=4"]})
    both = ["--trainer.per_device_train_batch_size=2", *DIVISIONS["fsdp"]]
    said = launch(
        2,
        {
            "skips": [*skips, f"--output_dir={tmp_path / 'two'}", *both],
            "stops": [*spoiled, f"--output_dir={tmp_path / 'stopped'}", *both],
        },
    )
    assert said.count("skips: done") == 2
    assert said.count("stops: step 2: the norm of the gradient is not a finite number. Its rows: ") == 2
    one, two = tmp_path / "one", tmp_path / "two"
    assert compare_metrics(one, two, ("rewards/margins", "skipped_steps")) == 3
    assert json.loads((two / "metrics.jsonl").read_text().splitlines()[-1])["skipped_steps"] == 1
    compare_weights(one / "stage2", two / "stage2")
