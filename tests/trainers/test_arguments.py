"""The trainers' config classes: the recipe's defaults and limits, under Python's names."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from cwdpo.config.checking import known_paths
from cwdpo.config.recipe import (
    CoolingConfig,
    DataConfig,
    LossParameters,
    ModelConfig,
    Recipe,
    Stage1Config,
    Stage2Config,
)
from cwdpo.errors import ConfigError
from cwdpo.trainers.arguments import (
    RECIPE_KEYS,
    CWDPOConfig,
    SmoothSFTConfig,
    arguments_from,
    refuse_each_alone,
    say_if_alone,
)
from cwdpo.trainers.sharding import refuse_one_process
from cwdpo.trainers.trl_settings import say_once


def stage2(**settings: Any) -> CWDPOConfig:
    return CWDPOConfig(output_dir="x", report_to="none", **settings)


def stage1(**settings: Any) -> SmoothSFTConfig:
    return SmoothSFTConfig(output_dir="x", report_to="none", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, "beta is -0.1, but must be > 0. Try 0.1."),
        ({"cooling": "off"}, "cooling is 'off', but must be True or False."),
        (
            {"cooling": {"floor": -1.0}},
            "cooling is {'floor': -1.0}, but must be True or False. Write cooling_floor=-1.0.",
        ),
        (
            {"cooling": {"tau": 1}},
            "cooling is {'tau': 1}, but must be True or False. Its settings are cooling_floor, c",
        ),
        ({"length_buckets": "yes"}, "length_buckets is 'yes', but must be True or False."),
        ({"max_tokens_per_batch": "8k"}, "max_tokens_per_batch is '8k', but must be a whole number or None."),
        ({"reference_dir": 3}, "reference_dir is 3, but must be text or None."),
        ({"on_policy": "sampled"}, "on_policy is 'sampled', but must be a dictionary or None."),
        ({"disable_dropout": "no"}, "disable_dropout is 'no', but must be True or False."),
        ({"learning_rate": 5}, "learning_rate is 5, but must be > 0 and <= 1. Write a rate such as 1e-5"),
        ({"beta": 0}, "beta is 0.0, but must be > 0. Try 0.1."),
        ({"beta": float("nan")}, "beta is nan, but must be a number."),
        ({"beta": "high"}, "beta is 'high', but must be a number."),
        (
            {"cooling_floor": 2.0},
            "cooling_floor is 2.0, but log-probabilities are never positive. Did you mean -2.0?",
        ),
        (
            {"cooling_floor": "lowest"},
            "cooling_floor is 'lowest'. Write chosen, gentle, mean or quantile:0.5, with or without",
        ),
        (
            {"cooling_floor": "median"},
            "cooling_floor is 'median'. Did you mean quantile:0.5?",
        ),
        (
            {"cooling_temperature": 0.0},
            "cooling_temperature is 0.0, but must be > 0. To switch cooling off, write `cooling=False`.",
        ),
        (
            {"cooling_constant": 2.0},
            "cooling_constant is 2.0, but must be >= 0 and <= 1. Write None for the paper's weight.",
        ),
        ({"cooling_detach": 1}, "cooling_detach is 1, but must be True or False."),
        ({"engine": "fast"}, "engine is 'fast', but must be one of auto, tree, plain."),
        ({"reference": "disk"}, "reference is 'disk', but must be cached or live;"),
        (
            {"reference_batch_size": 0},
            "reference_batch_size is 0, but must be >= 1. Write None for the evaluation batch size.",
        ),
        ({"loss": "sigmod"}, "loss is 'sigmod', but must be one of sigmoid, robust,"),
        ({"loss": {"sigmoid": "one"}}, "loss has sigmoid: 'one', but must have a number there."),
        ({"loss": "dpop", "dpop_penalty": -1.0}, "dpop_penalty is -1.0, but must be >= 0. Try 50; DPO is 0."),
        ({"dpop_penalty": 5.0}, "dpop_penalty belongs to loss dpop, but loss is sigmoid. Take it out."),
        ({"loss": "ld_dpo"}, "loss ld_dpo reads the reference token by token, and the cache holds sums."),
        ({"max_length": 0}, "max_length is 0, but must be >= 2. Write None for the model's own limit."),
        ({"max_length": "long"}, "max_length is 'long', but must be a whole number or None."),
    ],
)
def test_what_a_recipe_refuses_in_stage_2_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stage2(**settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objective": "smooth"},
            "objective is 'smooth', but must be one of constrained, smoothed, plain. Did you mean smoothed?",
        ),
        ({"penalty": -1.0}, 'penalty is -1.0, but must be >= 0. For plain SFT write `objective="plain"`.'),
        ({"ceiling": -2}, "ceiling is -2.0, but must be > 0. Try 2.0 nats per token."),
        ({"epsilon": 1.0}, "epsilon is 1.0, but must be > 0 and < 1. Try 0.1."),
        ({"engine": "tre"}, "engine is 'tre', but must be one of auto, tree, plain. Did you mean tree?"),
        ({"max_length": 1}, "max_length is 1, but must be >= 2."),
        ({"include_num_input_tokens_seen": True}, "include_num_input_tokens_seen counts a batch's `input_ids`, and a"),
    ],
)
def test_what_a_recipe_refuses_in_stage_1_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stage1(**settings)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("max_prompt_length", "CWDPOConfig has no max_prompt_length: nothing is cut here, and a row"),
        ("rpo_alpha", "CWDPOConfig has no rpo_alpha: write `loss={'sigmoid': 1.0, 'nll': ALPHA}`."),
        ("reference_free", "computed once and kept on disk: `reference`. Take it out."),
        ("packing", "`max_tokens_per_batch` limits its memory. Take it out."),
        ("floor", "CWDPOConfig has no floor. Did you mean cooling_floor?"),
        ("drop_below", "Did you mean cooling_drop_below?"),
        ("detach", "Did you mean cooling_detach?"),
        ("temperature", "Did you mean cooling_temperature?"),
        ("tau", "Did you mean cooling_temperature?"),
        ("gamma", "Did you mean simpo_margin?"),
        ("lam", "CWDPOConfig has no lam. Leave it out."),
        ("evaluation_strategy", "CWDPOConfig has no evaluation_strategy. Did you mean eval_strategy?"),
        ("no_such_thing", "CWDPOConfig has no no_such_thing. Leave it out."),
    ],
)
def test_a_setting_that_there_is_not_is_refused_with_what_takes_its_place(name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(advice)):
        CWDPOConfig(output_dir="x", **{name: 1})


def test_every_mistake_has_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        stage2(beta=-1, engine="fast")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["engine", "beta"]


def test_the_defaults_are_the_recipes() -> None:
    recipe = Recipe(model=ModelConfig(name_or_path="m"), data=DataConfig(train="t"), stage2=Stage2Config())
    first = arguments_from(recipe, recipe.data, Stage1Config())
    second = arguments_from(recipe, recipe.data, Stage2Config(), LossParameters(), CoolingConfig())
    assert {name: getattr(stage1(), name) for name in first} == first
    assert {name: getattr(stage2(), name) for name in second} == second
    assert {*first, *second} >= {"objective", "penalty", "ceiling", "epsilon", "beta", "engine", "max_length"}


def test_python_has_every_setting_of_the_sections() -> None:
    named = {*arguments_from(Stage1Config(), Stage2Config(), LossParameters(), CoolingConfig())}
    assert {*vars(Stage1Config())} - {"trainer"} <= named
    assert {*vars(Stage2Config())} - {"trainer", "cooling", "loss_parameters"} <= named
    assert {*vars(LossParameters())} <= named
    assert {f"cooling_{name}" for name in vars(CoolingConfig())} <= named


def test_they_survive_what_transformers_does_with_them(tmp_path: Path) -> None:
    given = stage2(beta=0.2, cooling_floor=-2.5, on_policy={"k": 2})
    assert pickle.loads(pickle.dumps(given)).to_dict() == given.to_dict()
    assert json.loads(given.to_json_string())["cooling_floor"] == -2.5
    words = ["--output_dir", str(tmp_path), "--beta", "0.2", "--objective", "plain"]
    (read,) = HfArgumentParser(CWDPOConfig).parse_args_into_dataclasses(words[:4])  # type: ignore[arg-type]
    assert (read.beta, read.cooling_floor, read.engine) == (0.2, "chosen - 2 tau", "auto")
    (read,) = HfArgumentParser(CWDPOConfig).parse_args_into_dataclasses(  # type: ignore[arg-type]
        [*words[:2], "--cooling_floor", "-1.5", "--reference", "live"]
    )
    assert (read.cooling_floor, read.reference) == (-1.5, "live")
    for words_of_loss, loss in (("ipo", "ipo"), ('{"sigmoid": 1, "nll": 0.5}', {"sigmoid": 1, "nll": 0.5})):
        (read,) = HfArgumentParser(CWDPOConfig).parse_args_into_dataclasses([*words[:2], "--loss", words_of_loss])  # type: ignore[arg-type]
        assert read.loss == loss
    (read,) = HfArgumentParser(SmoothSFTConfig).parse_args_into_dataclasses([*words[:2], *words[4:]])  # type: ignore[arg-type]
    assert read.objective == "plain"
    (read,) = HfArgumentParser(CWDPOConfig).parse_dict({"output_dir": str(tmp_path), "cooling_floor": "mean"})  # type: ignore[arg-type]
    assert read.cooling_floor == "mean"


def test_activation_checkpointing_has_a_third_position(tmp_path: Path) -> None:
    assert stage1().activation_checkpointing is False
    assert stage2(activation_checkpointing="auto").activation_checkpointing == "auto"
    words = ["--output_dir", str(tmp_path)]
    for said, meant in (["auto"], "auto"), (["false"], False), (["True"], True), ([], True):
        (read,) = HfArgumentParser(CWDPOConfig).parse_args_into_dataclasses(  # type: ignore[arg-type]
            [*words, "--activation_checkpointing", *said]
        )
        assert read.activation_checkpointing == meant
    with pytest.raises(ConfigError, match="activation_checkpointing is 'often', but must be True or False or auto"):
        stage1(activation_checkpointing="often")


def test_processes_that_would_each_train_alone_are_refused() -> None:
    refuse_each_alone({}, 1)
    refuse_each_alone({"WORLD_SIZE": "1"}, 1)
    refuse_each_alone({"WORLD_SIZE": "2"}, 2)
    with pytest.raises(ConfigError, match=r"2 processes were started, .* `trainer: \{use_cpu: true\}`"):
        refuse_each_alone({"WORLD_SIZE": "2"}, 1)


def test_checkpoints_that_several_processes_write_are_not_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = {"push_to_hub": True, "hub_strategy": "checkpoint"}
    assert stage1(**uploads).hub_strategy == "checkpoint"  # one process
    monkeypatch.setattr(SmoothSFTConfig, "world_size", 2)
    assert stage1(push_to_hub=True).hub_strategy == "every_save"
    with pytest.raises(ConfigError, match=r"hub_strategy is checkpoint, .* Write every_save\."):
        stage1(**uploads)


@pytest.mark.parametrize(
    ("settings", "advice"), [({"on_nonfinite": "skip"}, "stop"), ({"max_tokens_per_batch": 64}, "Take it out")]
)
def test_what_deepspeed_cannot_do_is_refused(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        stage2(deepspeed={"zero_optimization": {"stage": 2}}, **settings)


@pytest.mark.parametrize("division", [{"fsdp": True}, {"deepspeed": {"zero_optimization": {"stage": 2}}}])
def test_one_process_divides_nothing(division: dict[str, Any]) -> None:
    refuse_one_process(stage2())
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(division))} divides the model among processes"):
        refuse_one_process(stage2(**division))


def test_one_process_in_place_of_several_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    say_once.cache_clear()
    alone = {"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"}
    for other in ({}, {"MASTER_ADDR": "x"}, {"ACCELERATE_DYNAMO_MODE": "default"}, {**alone, "WORLD_SIZE": "2"}):
        say_if_alone(other)
    assert not caplog.text
    say_if_alone(alone)
    say_if_alone(alone)
    assert caplog.text.count("accelerate launch was asked for several processes and has started one") == 1


def test_the_page_says_which_argument_is_which_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|$", page, flags=re.MULTILINE)
    assert dict(rows) == RECIPE_KEYS | {"cooling": "stage2.cooling", "on_policy": "negatives"}
    assert {key for _, key in rows} <= {".".join(path) for path in known_paths(Recipe, ())}
