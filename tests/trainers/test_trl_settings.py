"""Every field of TRL's DPOConfig does what it says, has nothing to do and says so once, or is refused with advice."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser, TrainingArguments
from trl import DPOConfig

from cwdpo.errors import ConfigError
from cwdpo.trainers import CWDPOConfig
from cwdpo.trainers.trl_settings import say_once


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    say_once.cache_clear()


def config(**settings: Any) -> CWDPOConfig:
    return CWDPOConfig(output_dir="x", report_to="none", use_cpu=True, **settings)


DOES: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (3e-6, {"learning_rate": 3e-6}),
    "logging_steps": (7, {"logging_steps": 7}),
    "bf16": (True, {"bf16": True}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    "torch_empty_cache_steps": (5, {"torch_empty_cache_steps": 5}),
    "gradient_checkpointing": (True, {"activation_checkpointing": True}),
    "max_length": (77, {"max_length": 77}),
    "beta": (0.3, {"beta": 0.3}),
    "disable_dropout": (False, {"disable_dropout": False}),
    "model_init_kwargs": ({"dtype": "bfloat16"}, {"model_init_kwargs": {"dtype": "bfloat16"}}),
    "trust_remote_code": (True, {"trust_remote_code": True}),
    "precompute_ref_log_probs": (True, {"reference": "cached"}),
    "precompute_ref_batch_size": (3, {"reference_batch_size": 3}),
    "loss_type": (["ipo"], {"loss": "ipo"}),
    "use_weighting": (True, {"loss": "wpo"}),
}
"""A field, a value that is not its default, and the settings that come of it."""

TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "loss_weights": (
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss": {"sigmoid": 0.8, "bco": 0.2, "nll": 1.0}},
    ),
    "label_smoothing": ({"loss_type": ["robust"], "label_smoothing": 0.2}, {"loss": "robust", "robust_noise": 0.2}),
    "ld_alpha": (
        {"loss_type": ["sigmoid"], "ld_alpha": 0.25},
        {"loss": "ld_dpo", "ld_dpo_alpha": 0.25, "reference": "live"},
    ),
}
IDLE: dict[str, Any] = {
    "dataset_num_proc": 4,
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "f_alpha_divergence_coef": 0.7,
    "discopop_tau": 0.1,
    "ref_model_mixup_alpha": 0.5,
    "ref_model_sync_steps": 64,
    "pad_token": "<pad>",
}
REFUSED: dict[str, tuple[Any, str]] = {
    "router_aux_loss_coef": (
        0.01,
        "router_aux_loss_coef is 0.01, but the load-balancing loss of experts is not computed",
    ),
    "truncation_mode": (
        "keep_end",
        "truncation_mode is 'keep_end', but nothing is truncated here: a row longer than max",
    ),
    "f_divergence_type": (
        "js_divergence",
        "f_divergence_type is 'js_divergence', but the rewards here are those of rev",
    ),
    "activation_offloading": (
        True,
        "activation_offloading is True, but activations are not moved to the CPU here. Write",
    ),
    "sync_ref_model": (True, "sync_ref_model is True, but the reference stays the model that training started from."),
    "use_liger_kernel": (
        True,
        "use_liger_kernel replaces the head and the loss that are computed here. For its layers",
    ),
}


@pytest.mark.parametrize(
    ("kernels", "allowed"),
    [
        ({"fused_linear_cross_entropy": False}, True),
        ({"fused_linear_cross_entropy": False, "cross_entropy": False, "rope": True}, True),
        ({"fused_linear_cross_entropy": False, "cross_entropy": True}, False),
        ({"cross_entropy": False}, False),
    ],
)
def test_layer_kernels_of_liger_are_allowed_without_its_loss(
    kernels: dict[str, bool], allowed: bool, tmp_path: Path
) -> None:
    asked = {"output_dir": str(tmp_path), "use_liger_kernel": True, "liger_kernel_config": kernels}
    if allowed:
        assert CWDPOConfig(**asked).use_liger_kernel
    else:
        with pytest.raises(ConfigError, match="For its layers alone"):
            CWDPOConfig(**asked)


def test_each_field_of_trl_is_one_of_these() -> None:
    base = {each.name: each.default for each in dataclasses.fields(TrainingArguments)}
    theirs = {each.name for each in dataclasses.fields(DPOConfig) if base.get(each.name, "none") != each.default}
    known = DOES.keys() | TOGETHER.keys() | IDLE.keys() | REFUSED.keys()
    assert theirs <= known
    ours = {each.name for each in dataclasses.fields(CWDPOConfig)}
    assert {each.name for each in dataclasses.fields(DPOConfig)} <= ours


def test_trls_defaults_are_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    kept = {"output_dir", "report_to", "use_cpu", "remove_unused_columns"}  # the last is refused, with advice
    for each in dataclasses.fields(DPOConfig):
        if each.init and each.name not in kept:
            default = each.default if each.default is not dataclasses.MISSING else each.default_factory()  # type: ignore[misc]
            config(**{each.name: default})
    assert not [record for record in caplog.records if record.name.startswith("cwdpo")]
    assert config().learning_rate == DPOConfig("x", bf16=False, report_to="none").learning_rate == 1e-6


@pytest.mark.parametrize("name", DOES)
def test_it_does_what_it_says(name: str, caplog: pytest.LogCaptureFixture) -> None:
    value, expected = DOES[name]
    made = config(**{name: value})
    assert {key: getattr(made, key) for key in expected} == expected
    assert not [record for record in caplog.records if record.name.startswith("cwdpo")]


@pytest.mark.parametrize("name", TOGETHER)
def test_some_do_it_together(name: str) -> None:
    settings, expected = TOGETHER[name]
    made = config(**settings)
    assert {key: getattr(made, key) for key in expected} == expected
    again = config(**settings, **{key: getattr(made, key) for key in expected})  # as read back from a file
    assert again.loss == made.loss


@pytest.mark.parametrize("name", IDLE)
def test_nothing_to_do_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        config(**{name: IDLE[name]})
    said = [record.getMessage() for record in caplog.records if record.name.startswith("cwdpo")]
    assert len(said) == 1
    assert said[0].startswith(f"{name}={IDLE[name]!r} has no effect: ")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_to_write(name: str) -> None:
    value, start = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        config(**{name: value})
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"loss_type": ["hinge"]}, "loss_type holds 'hinge', which is not computed here. Near it are sigmoid and ipo;"),
        ({"loss_type": "dpo"}, "loss_type holds 'dpo', which is not computed here. DPO is sigmoid;"),
        ({"loss_type": "simpo"}, "loss_type holds 'simpo', which is not computed here. Write `loss='simpo'`;"),
        ({"loss_type": ["sgmoid"]}, "loss_type holds 'sgmoid', and known are sigmoid, ipo, robust"),
        ({"loss_type": "sigmoid", "loss_weights": [1.0, 2.0]}, "loss_weights has 2 numbers, and loss_type 1 losses."),
        ({"loss_weights": [1.0]}, "loss_weights belongs to loss_type, which is not set."),
        ({"loss_type": ["sigmoid", "sigmoid"]}, "loss_type holds a name twice: sigmoid, sigmoid."),
        ({"loss_type": ["ipo"], "ld_alpha": 0.5}, "ld_alpha changes loss_type sigmoid alone here (ld_dpo), not ipo."),
        (
            {"loss_type": ["ipo"], "use_weighting": True},
            "use_weighting changes loss_type sigmoid alone here (wpo), not",
        ),
        ({"loss_type": ["sigmoid"], "ld_alpha": 1.5}, "ld_alpha is 1.5, but must be >= 0 and <= 1."),
        ({"loss_type": ["robust"], "label_smoothing": 0.5}, "label_smoothing is 0.5, but must be >= 0 and < 0.5."),
        ({"loss_type": ["sigmoid"], "label_smoothing": 0.1}, "label_smoothing belongs to loss_type robust"),
        (
            {"loss_type": ["sigmoid"], "ld_alpha": 0.5, "precompute_ref_log_probs": True},
            "precompute_ref_log_probs is True, but ld_alpha reads log-probs of single tokens",
        ),
        ({"precompute_ref_batch_size": 0}, "precompute_ref_batch_size is 0, but must be >= 1."),
        ({"loss": "ipo", "loss_type": ["robust"]}, "loss is 'ipo', but TRL's settings beside it say 'robust'."),
        (
            {"reference": "live", "precompute_ref_log_probs": True},
            "reference is 'live', but TRL's settings beside it s",
        ),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], start: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**settings)
    assert str(caught.value).startswith(start)


def test_other_losses_than_trls_are_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    assert config(loss_type="bco_pair").loss == "bco"
    assert "its delta is a running mean of the rewards, and 0 in TRL" in caplog.text
    assert config(loss_type=["robust"]).robust_noise == 0.0  # TRL's default


def test_how_a_model_is_loaded() -> None:
    assert config().loading_options() == {"dtype": "auto", "trust_remote_code": False}
    given = {"dtype": "bfloat16", "attn_implementation": "eager", "device_map": "auto", "quantization_config": 3}
    expected = {"dtype": "bfloat16", "attn_implementation": "eager", "quantization": 3, "trust_remote_code": True}
    assert config(model_init_kwargs=given, trust_remote_code=True).loading_options() == expected
    assert config(model_init_kwargs='{"torch_dtype": null}').loading_options()["dtype"] == "auto"
    for wrong, match in (
        ({"revision": "r2"}, "hf download MODEL --revision"),
        ({"x": 1}, "'x', which is not read"),
        ("x", "dictionary"),
    ):
        with pytest.raises(ConfigError, match=match):
            config(model_init_kwargs=wrong).loading_options()


def test_a_command_line_reads_them() -> None:
    words = [
        "--output_dir",
        "x",
        "--report_to",
        "none",
        "--use_cpu",
        "--loss_type",
        "sigmoid",
        "sft",
        "--loss_weights",
        "1",
        "0.5",
    ]
    (read,) = HfArgumentParser(CWDPOConfig).parse_args_into_dataclasses(
        [*words, "--model_init_kwargs", '{"dtype": "float32"}']
    )  # type: ignore[arg-type]
    assert read.loss == {"sigmoid": 1.0, "nll": 0.5}
    assert read.loading_options()["dtype"] == "float32"
