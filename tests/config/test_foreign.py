"""Configurations of other tools: recognised, translated, and refused where a recipe was expected."""

from pathlib import Path

import pytest

from cwdpo.config.foreign import _NO_COUNTERPART, _OTHER_NAMES, Translated, read_foreign, recognise
from cwdpo.config.recipe_file import known_settings, read_recipe
from cwdpo.errors import ConfigError

TRAINER = (
    "learning_rate",
    "bf16",
    "warmup_steps",
    "per_device_train_batch_size",
    "optim",
    "output_dir",
    "eval_strategy",
)

TRL = """
model_name_or_path: owner/model
torch_dtype: bfloat16
dataset_name: owner/rows
learning_rate: 5.0e-6
beta: 0.2
loss_type: [sigmoid, bco_pair, sft]
loss_weights: [0.8, 0.2, 1.0]
max_prompt_length: 128
use_peft: true
lora_r: 64
lora_target_modules: all-linear
dataset_num_proc: 8
warmup_ratio: 0.1
"""
FACTORY = """
model_name_or_path: owner/model
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: q_proj,v_proj
pref_beta: 0.3
pref_loss: ipo
dataset: rlhf_v
template: qwen2_vl
cutoff_len: 2048
bf16: true
"""
SWIFT = """
# one GPU
CUDA_VISIBLE_DEVICES=0 \\
swift rlhf \\
    --rlhf_type dpo --model owner/model \\
    --dataset a.jsonl b.jsonl \\
    --tuner_type full --torch_dtype float16 \\
    --learning_rate 1e-4 --attn_impl flash_attn --freeze_vit true \\
    --rpo_alpha 0.1
"""
AXOLOTL = """
base_model: owner/model
rl: dpo
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_target_linear: true
sequence_len: 2048
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_torch
"""


def translated(tmp_path: Path, text: str, name: str = "theirs.yaml") -> Translated:
    (tmp_path / name).write_text(text)
    return read_foreign(str(tmp_path / name), trainer_fields=TRAINER)


def test_trl(tmp_path: Path) -> None:
    found = translated(tmp_path, TRL)
    assert found.tool == "TRL"
    assert found.settings == {
        "model.name_or_path": "owner/model",
        "model.dtype": "bfloat16",
        "data.train": "owner/rows",
        "stage2.trainer.learning_rate": 5e-6,
        "stage2.beta": 0.2,
        "stage2.loss": {"sigmoid": 0.8, "bco": 0.2, "nll": 1.0},
        "model.lora": {},
        "model.lora.r": 64,
        "model.lora.target_modules": "all-linear",
        "trainer.warmup_steps": 0.1,
    }
    assert found.defaults["stage2.trainer.num_train_epochs"] == 3
    assert not {"trainer.warmup_steps", "model.lora", "model.lora.r", "stage2.beta"} & found.defaults.keys()
    assert set(found.without) == {"max_prompt_length"}
    assert found.renamed["warmup_ratio"] == "trainer.warmup_steps"


def test_llama_factory(tmp_path: Path) -> None:
    found = translated(tmp_path, FACTORY)
    assert found.tool == "LLaMA-Factory"
    assert found.settings == {
        "model.name_or_path": "owner/model",
        "model.lora": {},
        "model.lora.r": 8,
        "model.lora.alpha": 16,  # twice the rank is its default
        "model.lora.target_modules": ["q_proj", "v_proj"],
        "stage2.beta": 0.3,
        "stage2.loss": "ipo",
        "data.train": "rlhf_v",
        "trainer.bf16": True,
    }
    assert set(found.without) == {"template", "cutoff_len"}


def test_a_command_of_ms_swift_in_a_script(tmp_path: Path) -> None:
    found = translated(tmp_path, SWIFT, "run.sh")
    assert found.tool == "ms-swift"
    assert found.settings == {
        "model.name_or_path": "owner/model",
        "data.train": ["a.jsonl", "b.jsonl"],
        "model.lora": None,
        "model.dtype": "float16",
        "stage2.trainer.learning_rate": 1e-4,
        "model.attn_implementation": "flash_attention_2",
        "model.freeze_vision": True,
    }
    assert "nll" in found.without["rpo_alpha"]


def test_axolotl(tmp_path: Path) -> None:
    found = translated(tmp_path, AXOLOTL)
    assert found.tool == "axolotl"
    assert found.settings == {
        "model.name_or_path": "owner/model",
        "model.lora": {},
        "model.quantization": {"bits": 4},
        "model.lora.r": 32,
        "model.lora.target_modules": "all-linear",
        "data.max_length": 2048,
        "trainer.per_device_train_batch_size": 2,
        "stage2.trainer.num_train_epochs": 4,
        "trainer.optim": "adamw_torch",
    }


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("lora_target_modules: all-linear\n", "all-linear"),
        ("base_model: m\nlora_target_linear: true\n", "all-linear"),
        ("base_model: m\nlora_target_linear: false\n", None),
        ("pref_beta: 0.1\nlora_target: all\n", "language"),
        ("pref_beta: 0.1\nlora_target: all\nfreeze_vision_tower: false\n", "all-linear"),
        ("rlhf_type: dpo\ntarget_modules: all-linear\n", "language"),
        ("rlhf_type: dpo\ntarget_modules: all-linear\nfreeze_vit: false\n", "all-linear"),
    ],
)
def test_all_linear_layers_are_those_of_each_tool(tmp_path: Path, text: str, targets: str | None) -> None:
    assert translated(tmp_path, text).settings.get("model.lora.target_modules") == targets


@pytest.mark.slow
def test_defaults_of_trl_are_those_of_its_classes(tmp_path: Path) -> None:
    from trl import DPOConfig, ModelConfig

    config, model = DPOConfig(str(tmp_path), bf16=False), ModelConfig()
    defaults = translated(tmp_path, "dataset_name: rows\n").defaults
    names = {name: name.removeprefix("stage2.").removeprefix("trainer.") for name in defaults if "model" not in name}
    assert len(names) == 7
    for ours, name in names.items():
        assert getattr(config, name) == defaults[ours]
    assert [defaults[f"model.lora.{name}"] for name in ("r", "alpha", "dropout")] == [
        model.lora_r,
        model.lora_alpha,
        model.lora_dropout,
    ]


def test_a_loss_that_is_not_here_is_named(tmp_path: Path) -> None:
    found = translated(tmp_path, TRL.replace("[sigmoid, bco_pair, sft]", "hinge").replace("loss_weights", "#"))
    assert found.without["loss_type"] == "stage2.loss has no `hinge`"


def test_the_command_itself() -> None:
    found = read_foreign("trl dpo --model_name_or_path=owner/model --beta 0.5 --bf16", trainer_fields=TRAINER)
    assert found.settings == {"model.name_or_path": "owner/model", "stage2.beta": 0.5, "trainer.bf16": True}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.yaml", "stage: sft\nfinetuning_type: lora\n", "has stage: sft, and cwdpo trains from preferences"),
        ("a.yaml", "x: 1\n", "no configuration that is known here (LLaMA-Factory, ms-swift, axolotl, TRL)"),
        ("a.yaml", "model: {name_or_path: m}\n", "is a recipe of cwdpo already"),
        ("a.py", "import trl\n", "is a Python script, which is not read"),
        ("a.sh", "swift rlhf --model 'm\n", "the command cannot be read: No closing quotation"),
    ],
)
def test_what_cannot_be_carried_over(tmp_path: Path, name: str, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translated(tmp_path, text, name)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_without_a_counterpart_are_kept_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(TRL + "resume_from_checkpoint: x\nload_in_4bit: true\n")
    found = read_foreign(str(tmp_path / "r.yaml"), trainer_fields=(*TRAINER, "resume_from_checkpoint"))
    assert found.without["resume_from_checkpoint"] == "run `cwdpo train RECIPE --resume`"
    assert found.settings["model.quantization"] == {"bits": 4}
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "r.yaml")
    assert str(caught.value).endswith("Without a counterpart: max_prompt_length, resume_from_checkpoint.")


def test_every_other_word_is_for_one_setting() -> None:
    words = [word for ours in _OTHER_NAMES.values() for word in ours]
    assert len(words) == len(set(words))
    assert {*_OTHER_NAMES} <= known_settings()
    assert not {*words} & {*_NO_COUNTERPART}


def test_a_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"--from no.yaml cannot be read \(No such file or directory\)"):
        read_foreign("no.yaml", trainer_fields=TRAINER)


def test_a_recipe_is_nobody_elses() -> None:
    assert recognise({"model": {"name_or_path": "m"}, "beta": 0.1, "template": "x"}) is None
    assert recognise({"seed": 0}) is None


@pytest.mark.parametrize(("text", "tool"), [(TRL, "TRL"), (FACTORY, "LLaMA-Factory"), (AXOLOTL, "axolotl")])
def test_a_foreign_file_in_place_of_a_recipe_is_pointed_to_init(tmp_path: Path, text: str, tool: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    assert f"this is a configuration of {tool}, not a recipe of cwdpo" in str(caught.value)
    assert f"`cwdpo init DATA --from {path}`" in str(caught.value)
    assert "\n" not in str(caught.value)
