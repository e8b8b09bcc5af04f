"""Values of ``trainer`` sections against the types that transformers declares."""

from typing import Any

import pytest

from cwdpo.config.checking import check_trainer_section
from cwdpo.errors import ConfigError
from cwdpo.trainers.arguments import argument_types


def complaint(**section: Any) -> str:
    try:
        check_trainer_section(section, argument_types(), lambda path: f"r.yaml/{path[-1]}", path=("stage1", "trainer"))
    except ConfigError as problem:
        return str(problem)
    return ""


@pytest.mark.parametrize(
    "section",
    [
        {"learning_rate": 1e-3, "weight_decay": 0},
        {"learning_rate": 1e-9, "num_train_epochs": 0.5, "dataloader_num_workers": 0, "save_total_limit": 1},
        {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1},
        {"save_total_limit": None, "warmup_steps": 0.1, "max_steps": -1},
        {"eval_strategy": "no", "save_strategy": "best", "optim": "sgd", "lr_scheduler_type": "constant"},
        {"report_to": None},
        {"report_to": "none"},
        {"report_to": ["tensorboard"]},
        {"debug": ["underflow_overflow"]},
        {"liger_kernel_config": {"rope": True}},
        {"fsdp": True},
        {"fsdp": "full_shard auto_wrap"},
        {"fsdp_config": {"min_num_params": 1}, "deepspeed": "ds.json"},
        {"deepspeed": {"zero_optimization": {"stage": 2}}},
        {"activation_checkpointing": True, "tf32": None},
        {"activation_checkpointing": "auto"},
        {"include_num_input_tokens_seen": True},
        {"trackio_static_space_id": False},
        {"length_buckets": True, "max_tokens_per_batch": 8192},
    ],
)
def test_what_the_trainer_takes_passes(section: dict[str, Any]) -> None:
    assert complaint(**section) == ""


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"bf16": 1}, "bf16 is 1, but must be true or false."),
        ({"bf16": "true"}, "bf16 is 'true', but must be true or false."),
        ({"max_steps": True}, "max_steps is true, but must be a whole number. Write one, such as 1."),
        (
            {"learning_rate": None},
            "learning_rate is null, but must be a number. Write a rate such as 1e-5; with 0 nothing is learned.",
        ),
        (
            {"learning_rate": float("nan")},
            "learning_rate is nan, but must be > 0 and <= 1. Write a rate such as 1e-5; with 0 nothing is learned.",
        ),
        (
            {"learning_rate": 0},
            "learning_rate is 0, but must be > 0 and <= 1. Write a rate such as 1e-5; with 0 nothing is learned.",
        ),
        (
            {"learning_rate": -1e-5},
            "learning_rate is -1e-05, but must be > 0 and <= 1. Write a rate such as 1e-5; with 0 nothing is learned.",
        ),
        (
            {"learning_rate": 5e6},
            "learning_rate is 5000000.0, but must be > 0 and <= 1. Write a rate such as 1e-5; with 0 nothing is "
            "learned.",
        ),
        ({"report_to": 3}, "report_to is 3, but must be null or text or a list."),
        ({"save_total_limit": 0}, "save_total_limit is 0, but must be >= 1. Write null to keep all checkpoints."),
        ({"trackio_static_space_id": True}, "trackio_static_space_id is true, but must be text or null or false."),
        ({"label_names": ["a", 1]}, "label_names is ['a', 1], but its values must be text."),
        (
            {"liger_kernel_config": {"rope": 1}},
            "liger_kernel_config is {'rope': 1}, but its values must be true or false.",
        ),
        ({"debug": ["x"]}, "debug is ['x'], but its values must be one of underflow_overflow, tpu_metrics_debug."),
        ({"parallelism_config": {}}, "parallelism_config is {}, but must be null."),
    ],
)
def test_what_it_would_stumble_over_is_told(section: dict[str, Any], expected: str) -> None:
    key = next(iter(section))
    assert complaint(**section) == f"r.yaml/{key}: stage1.trainer.{expected}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("dtype", ". It belongs in another section: model.dtype."),
        ("beta", ". It belongs in another section: stage2.beta."),
        ("temperature", ". It belongs in another section: stage2.cooling.temperature or negatives.temperature."),
        ("stage1_fracton", " - did you mean 'data.stage1_fraction'?"),
        ("learning_rte", " - did you mean 'stage1.trainer.learning_rate'?"),
        ("lr", " - did you mean 'stage1.trainer.learning_rate'?"),
        ("preset", ". Write it at the top of the recipe."),
        ("xyz", ". It is not a setting of transformers.TrainingArguments; see its documentation."),
    ],
)
def test_keys_of_other_sections_are_pointed_there(key: str, expected: str) -> None:
    assert complaint(**{key: 1}) == f"r.yaml/{key}: unknown key 'stage1.trainer.{key}'{expected}"


def test_every_mistake_has_a_line() -> None:
    assert complaint(bf16=1, max_step=3, seed=1).splitlines() == [
        "r.yaml/bf16: stage1.trainer.bf16 is 1, but must be true or false.",
        "r.yaml/max_step: unknown key 'stage1.trainer.max_step' - did you mean 'stage1.trainer.max_steps'?",
        "r.yaml/seed: 'stage1.trainer.seed' is not set here. Write it at the top of the recipe: `seed: ...`.",
    ]
