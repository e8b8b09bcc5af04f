"""A TRL script with its import changed, and the README's own, each on a tiny model."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from support import disc_data

ROOT = Path(__file__).parents[2]
Tiny = Callable[[str], Path]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A data set as the hub has them: parquet with pictures in it, and two splits."""
    disc_data.write(tmp_path / "data", rows := disc_data.records(8))
    records = [
        {
            "images": [Image.open(tmp_path / "data" / row["images"][0]).convert("RGB")],
            "prompt": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]}
            ],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": row["chosen"]}]}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": row["rejected"]}]}],
        }
        for row in rows
    ]
    features = datasets.Dataset.from_list(records).features
    features["images"] = datasets.List(datasets.Image())
    for split, some in (("train", records[:4]), ("test", records[4:])):
        datasets.Dataset.from_list(some, features=features).to_parquet(tmp_path / "hub" / f"{split}.parquet")
    return tmp_path / "hub"


@pytest.mark.slow
def test_a_trl_script_runs_with_its_import_changed(hub: Path, tiny: Tiny, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("dpo_vlm", ROOT / "examples" / "trl" / "dpo_vlm.py")
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    settings = {
        "dataset_name": hub, "model_name_or_path": tiny("qwen2_5_vl"), "output_dir": tmp_path / "out",
        "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "beta": 0.1, "max_length": 512,
        "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1, "report_to": "none", "loss_type": "sigmoid",
        "dtype": "float32", "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ".*language_model.*_proj",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    trainer = script.main([*words, "--use_cpu", "--use_peft", "--activation_checkpointing"])
    assert trainer.state.global_step == 2
    steps = [line for line in trainer.state.log_history if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "eval_results.json").is_file()
    assert [line for line in trainer.state.log_history if "eval_rewards/margins" in line]


@pytest.mark.slow
def test_the_readmes_script_runs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the model's name; no GPU, and no network."""
    (script,) = re.findall(r"```python\n(from peft.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    disc_data.write(tmp_path, disc_data.records(4), name="train.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict[str, Any] = {}
    exec(script.replace("Qwen/Qwen2.5-VL-3B-Instruct", str(tiny("qwen2_5_vl"))), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 3  # four rows in one step, three epochs
    adapted = {name.split(".lora_")[0] for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    layers = {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == layers
    assert all("language_model" in name for name in adapted)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
