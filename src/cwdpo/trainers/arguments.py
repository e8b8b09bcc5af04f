"""Training arguments of both stages: ``TrainingArguments`` and the settings that the method adds.

Their defaults and limits are those of the recipe's sections: Python and YAML refuse the same values.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_type_hints

import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.trainer_utils import HubStrategy

from cwdpo.config.checking import build, problem_with, replacement, wrong_argument
from cwdpo.config.foreign import our_name
from cwdpo.config.recipe import (
    CoolingConfig,
    CoolingScales,
    DataConfig,
    EngineName,
    LossParameters,
    NegativesConfig,
    Objective,
    PreferenceLoss,
    Recipe,
    ReferenceKind,
    Stage1Config,
    Stage2Config,
    check_loss,
)
from cwdpo.errors import ConfigError
from cwdpo.trainers.trl_settings import TRLSettings, say_once

_DECLARED: Mapping[str, tuple[type, str]] = {
    "max_length": (DataConfig, "max_length"),
    "engine": (Recipe, "engine"),
    **{name: (Stage1Config, name) for name in ("objective", "penalty", "ceiling", "epsilon")},
    **{name: (Stage2Config, name) for name in ("beta", "loss", "reference", "reference_batch_size")},
    **{each.name: (LossParameters, each.name) for each in fields(LossParameters)},
    **{
        f"cooling_{name}": (CoolingConfig, name)
        for name in ("floor", "temperature", "detach", "constant", "scales", "drop_below")
    },
}
"""Python's name of a setting: the recipe's section and key."""

_SECTIONS: Mapping[type, str] = {
    **{Recipe: "", DataConfig: "data.", Stage1Config: "stage1.", Stage2Config: "stage2."},
    **{LossParameters: "stage2.loss_parameters.", CoolingConfig: "stage2.cooling."},
}

RECIPE_KEYS: Mapping[str, str] = {name: _SECTIONS[section] + key for name, (section, key) in _DECLARED.items()}
"""Python's name of a setting, and a recipe's."""

_IN_PYTHON = {
    r"`cooling: null`": "`cooling=False`", r"`objective: plain`": '`objective="plain"`', r"\bnull\b": "None",
    r"\btrue\b": "True", r"\bfalse\b": "False", "a section of keys and values": "a dictionary",
}  # fmt: skip
"""What a recipe's advice is called in Python."""

OnNonfinite: TypeAlias = Literal["stop", "skip"]
"""What a step does whose loss or gradient is not finite."""

if TYPE_CHECKING:
    Floor: TypeAlias = float | str
    LossNames: TypeAlias = PreferenceLoss | dict[PreferenceLoss, float]
    Checkpointing: TypeAlias = bool | Literal["auto"] | None
else:

    class Floor(str):
        """``HfArgumentParser`` reads one type from the command line, and this one gives a number where it is one."""

        def __new__(cls, text: str) -> "float | str":
            try:
                return float(text)
            except ValueError:
                return text

    class LossNames(str):
        """The same for a loss: one name, or a JSON object of names and weights."""

        def __new__(cls, text: str) -> "str | dict[str, float]":
            return json.loads(text) if text.startswith("{") else text

    class Checkpointing(str):
        """The same for a switch that has a third position."""

        def __new__(cls, text: str) -> "bool | str":
            return text if text == "auto" else string_to_bool(text)


@dataclass
class AnswerArguments(TrainingArguments):
    """What both stages share. Every other setting is the Trainer's own."""

    def __new__(cls, *_: object, **given: object) -> Self:
        """Refuse, with a ConfigError, a setting that there is not, and say what takes its place."""
        known = [each.name for each in fields(cls) if each.init]
        for name in given:
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no {name}{_in_its_place(name, known)}")
        return super().__new__(cls)

    max_length: int | None = field(
        default=DataConfig.max_length, metadata={"help": "Most tokens in prompt and answer; longer stops."}
    )
    engine: EngineName = field(default=Recipe.engine, metadata={"help": "How log-probs are computed."})
    length_buckets: bool = field(
        default=False,
        metadata={"help": "Put rows of similar length (images, prompt and all answers) in the same step."},
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Most tokens that pass through the model at once, padding and repeated prompts included."},
    )
    on_nonfinite: OnNonfinite = field(
        default="stop",
        metadata={"help": "At a step whose loss or gradient is not finite: stop, or skip it and count it."},
    )
    activation_checkpointing: Checkpointing = field(  # type: ignore[assignment]  # the Trainer's has no third position
        default=None,
        metadata={
            "help": "Recompute activations, for less memory and a third more time; auto: where a step needs it.",
            "nargs": "?",
            "const": True,
        },
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be off: rows are read whole."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off, so that a NaN loss is seen."})
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Off: ranks may make unequal numbers of passes, and buffers are constant."}
    )

    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={"help": "Off: every weight has a gradient on every rank, see trainers/used_weights.py."},
    )

    def __post_init__(self) -> None:
        """Refuse, with a ConfigError, what a recipe would refuse too, and what has no effect on these trainers."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        say_if_alone(os.environ)
        refuse_each_alone(os.environ, self.world_size)
        named = [(each.name, getattr(self, each.name)) for each in fields(self)]
        problems = [(name, problem_with(*_DECLARED[name], value)) for name, value in named if name in _DECLARED]
        problems += self._other_than_declared()
        text = "\n".join(f"{name} {problem}" for name, problem in problems if problem)
        if text:
            raise ConfigError(_in_python(text))
        for name, reason in self._refused():
            raise ConfigError(reason, setting=name)
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process means DataParallel, which cannot split a batch of prompts with "
                "answers. Start with `torchrun --nproc-per-node N -m cwdpo train ...`, or set CUDA_VISIBLE_DEVICES=0."
            )

    def _refused(self) -> Iterator[tuple[str, str]]:
        """Settings of the Trainer's, and of several together, that would do nothing or harm here, and what to write."""
        if self.remove_unused_columns:
            yield (
                "remove_unused_columns",
                "remove_unused_columns must be false: images and answers are read from the row itself.",
            )
        if self.label_smoothing_factor:
            yield (
                "label_smoothing_factor",
                "label_smoothing_factor has no effect on these losses. For smoothed gentle negatives there are stage "
                "1's `objective: smoothed` and `epsilon`.",
            )
        if self.use_liger_kernel and not _only_layers(self.liger_kernel_config or {}):
            yield (
                "use_liger_kernel",
                "use_liger_kernel replaces the head and the loss that are computed here. For its layers alone write "
                "`liger_kernel_config: {fused_linear_cross_entropy: false, cross_entropy: false}` beside it.",
            )
        if self.ddp_find_unused_parameters:
            yield (
                "ddp_find_unused_parameters",
                "ddp_find_unused_parameters does not know several passes a step, and is not needed: every weight has a "
                "gradient on every rank here, used or not. Take it out.",
            )
        if self.world_size > 1 and (self.activation_checkpointing_kwargs or {}).get("use_reentrant"):  # type: ignore[union-attr]
            yield (
                "activation_checkpointing_kwargs",
                "activation_checkpointing_kwargs has use_reentrant, with which several passes a step stop ranks. Take "
                "it out: the other way is the default.",
            )
        if self.include_num_input_tokens_seen != "no":
            yield (
                "include_num_input_tokens_seen",
                "include_num_input_tokens_seen counts a batch's `input_ids`, and a batch here is prompts with answers. "
                "Take it out: every line of training has `num_tokens`.",
            )
        if self.push_to_hub and self.world_size > 1 and "checkpoint" in self.hub_strategy:
            yield (
                "hub_strategy",
                f"hub_strategy is {HubStrategy(self.hub_strategy).value}, which uploads a checkpoint while other "
                "processes still write into it: the copy could not be resumed. Write every_save.",
            )
        if "inputs" in self.include_for_metrics:
            yield (
                "include_for_metrics",
                "include_for_metrics holds `inputs`, but a batch here is prompts with answers, which compute_metrics "
                "cannot be given as one tensor. Take it out; predictions come in the order of the rows.",
            )
        if getattr(self.accelerator_config, "dispatch_batches", None):
            yield (
                "accelerator_config",
                "accelerator_config has dispatch_batches, which cuts batches along their first dimension, and a batch "
                "here is prompts with any number of answers. Take it out: each process reads its own rows.",
            )
        if self.deepspeed is not None:
            yield from self.refused_under_deepspeed()
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            yield (
                "max_tokens_per_batch",
                f"max_tokens_per_batch is {self.max_tokens_per_batch}, but must be at least 1. No limit: leave it out.",
            )
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            yield (
                "train_sampling_strategy",
                f"train_sampling_strategy `{self.train_sampling_strategy}` needs rows of token ids. Write "
                "`length_buckets: true`, which counts images and all answers, or `max_tokens_per_batch: 8192`.",
            )

    def refused_under_deepspeed(self) -> Iterator[tuple[str, str]]:
        """Settings that cannot work with DeepSpeed, which these arguments need not name: a launcher may bring it."""
        if self.on_nonfinite == "skip":
            yield (
                "on_nonfinite",
                "on_nonfinite is skip, but DeepSpeed updates the weights before the gradient can be looked at. Write "
                "`on_nonfinite: stop`.",
            )
        if self.max_tokens_per_batch is not None:
            yield (
                "max_tokens_per_batch",
                "max_tokens_per_batch takes several backward passes a step, and DeepSpeed would update the weights "
                "after each. Take it out, and lower per_device_train_batch_size.",
            )

    def _other_than_declared(self) -> Iterator[tuple[str, str]]:
        """Our settings that no section of a recipe has, and the learning rate, with what is wrong with their values."""
        types = _types(type(self))
        of_trainer = TrainingArguments.__dataclass_fields__.keys() - AnswerArguments.__annotations__.keys()
        for name in types.keys() - of_trainer - _DECLARED.keys() | {"learning_rate"}:
            value = getattr(self, name)
            if name == "learning_rate" and value == 0:
                continue  # measures what training costs, and changes no weight
            as_written = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            wrong = wrong_argument(name, as_written, types[name])
            if wrong and isinstance(value, Mapping):  # a recipe has a section where Python has one name a setting
                keys = {key.removeprefix(f"{name}_"): key for key in types if key.startswith(f"{name}_")}
                meant = [f"{keys[key]}={value[key]!r}" for key in value if key in keys]
                wrong += f" Write {', '.join(meant)}." if meant else f" Its settings are {', '.join(keys.values())}."
            yield name, f"is {wrong}" if wrong else ""

    def loading_options(self) -> dict[str, Any]:
        """How a model that is given by its name is loaded: options of :func:`cwdpo.models.loading.load_policy`."""
        return {"dtype": "auto", "trust_remote_code": False}


def _in_its_place(name: str, known: Sequence[str]) -> str:
    """What to write instead of an unknown setting, as it goes on after the name."""
    if instead := replacement(name, None):
        return _in_python(instead)
    recipes = our_name(name)
    meant = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    meant = meant or [each for each in known if recipes is not None and RECIPE_KEYS.get(each) == recipes]
    # the section of a recipe's key is a part of the name here
    meant = meant or [each for each in known if each.endswith(f"_{name}")]
    return f". Did you mean {' or '.join(meant)}?" if 0 < len(meant) <= 3 else ". Leave it out."


def _in_python(text: str) -> str:
    """Advice about a recipe in Python's words: `stage2: {loss: robust}` is `loss='robust'`."""
    for ours, python in _IN_PYTHON.items():
        text = re.sub(ours, python, text)
    return re.sub("`([^`]+)`", lambda found: f"`{_as_arguments(found[1])}`", text)


def _as_arguments(code: str) -> str:
    """A recipe's key, or keys with values, as arguments; what is neither stays."""
    ours = {key: name for name, key in RECIPE_KEYS.items()}
    if code in ours or code.startswith("trainer."):
        return ours.get(code) or code.removeprefix("trainer.")

    def named(values: Any, above: str = "") -> Iterator[str]:
        for key, value in values.items():
            if f"{above}{key}" in ours:
                shown = re.sub(r"'([A-Z]+|\.+)'", r"\1", repr(value))  # ALPHA stands for a number
                yield f"{ours[f'{above}{key}']}={shown}"
            else:
                yield from named(value, f"{above}{key}.")

    try:
        return ", ".join(named(yaml.safe_load(code))) or code
    except (AttributeError, yaml.YAMLError):  # no mapping, or a key that is no argument
        return code


def _only_layers(kernels: Mapping[str, Any]) -> bool:
    """Whether Liger's kernels leave the head and the loss alone; it takes the fused loss unless switched off."""
    return kernels.get("fused_linear_cross_entropy") is False and not kernels.get("cross_entropy", False)


def say_if_alone(environment: Mapping[str, str]) -> None:
    """``accelerate launch --cpu --num_processes 2`` starts one process, without a word (accelerate issue 2741); what it
    leaves in the environment is an address for others, and no number of them."""
    if "ACCELERATE_DYNAMO_MODE" in environment and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        say_once(
            "accelerate launch was asked for several processes and has started one, so a step has the rows of one. "
            "Start them with `torchrun --nproc-per-node N -m cwdpo train ...`, or `torchrun --nproc-per-node N SCRIPT`."
        )


def refuse_each_alone(environment: Mapping[str, str], together: int) -> None:
    """Of processes that torchrun has started where there is no GPU, accelerate lets each train alone, without a word,
    unless it knows that CPUs are meant. ``together`` is the number that will train together."""
    started = int(environment.get("WORLD_SIZE", "1"))
    if started > 1 and together == 1:
        raise ConfigError(
            f"{started} processes were started, but there is no GPU, so each would train alone on all rows. Write "
            "`trainer: {use_cpu: true}` (use_cpu=True) to train together on the CPU, or start one process."
        )


def argument_types() -> dict[str, Any]:
    """What both stages take, by name, with its declared type."""
    return _types(AnswerArguments)


def _types(arguments: type[AnswerArguments]) -> dict[str, Any]:
    types = get_type_hints(arguments) | {"activation_checkpointing": bool | Literal["auto"] | None}
    return {each.name: types[each.name] for each in fields(arguments) if each.init}


def arguments_from(*sections: object) -> dict[str, Any]:
    """The settings of some recipe sections under Python's names."""
    return {
        name: getattr(section, key)
        for name, (kind, key) in _DECLARED.items()
        for section in sections
        if isinstance(section, kind)
    }


@dataclass
class SmoothSFTConfig(AnswerArguments):
    """Settings of stage 1, see :class:`cwdpo.config.recipe.Stage1Config`."""

    objective: Objective = Stage1Config.objective
    penalty: float = Stage1Config.penalty
    ceiling: float = Stage1Config.ceiling
    epsilon: float = Stage1Config.epsilon


@dataclass
class CWDPOConfig(TRLSettings, AnswerArguments):
    """Settings of stage 2, see :class:`cwdpo.config.recipe.Stage2Config`; and those of TRL's ``DPOConfig``, see
    :class:`cwdpo.trainers.trl_settings.TRLSettings`."""

    learning_rate: float = field(default=1e-6, metadata={"help": "As in TRL; adapters take more, such as 5e-6."})
    beta: float = Stage2Config.beta
    loss: LossNames = field(default=Stage2Config.loss, metadata={"help": "A loss, or losses with weights."})
    robust_noise: float = LossParameters.robust_noise
    simpo_margin: float = LossParameters.simpo_margin
    dpop_penalty: float = LossParameters.dpop_penalty
    cal_dpo_weight: float = LossParameters.cal_dpo_weight
    beta_dpo_scale: float = LossParameters.beta_dpo_scale
    ld_dpo_alpha: float = LossParameters.ld_dpo_alpha
    anchor_reward: float = LossParameters.anchor_reward
    running_momentum: float = LossParameters.running_momentum
    cooling: bool = field(default=True, metadata={"help": "False is plain DPO."})
    cooling_floor: Floor = CoolingConfig.floor
    cooling_temperature: float = CoolingConfig.temperature
    cooling_detach: bool = CoolingConfig.detach
    cooling_constant: float | None = field(
        default=CoolingConfig.constant, metadata={"help": "One weight for every negative."}
    )
    cooling_scales: CoolingScales = CoolingConfig.scales
    cooling_drop_below: float = CoolingConfig.drop_below
    reference: ReferenceKind = Stage2Config.reference
    reference_batch_size: int | None = field(
        default=Stage2Config.reference_batch_size,
        metadata={"help": "Rows at a time in the reference pass; per_device_eval_batch_size by default."},
    )
    reference_dir: str | None = field(default=None, metadata={"help": "Default: output_dir/reference."})
    on_policy: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of cwdpo.config.recipe.NegativesConfig; None: the rows' alone."}
    )
    on_policy_dir: str | None = field(default=None, metadata={"help": "Default: output_dir/negatives."})

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        defaults = {each.name: each.default for each in fields(self)}
        for name, value in self.translated().items():
            now = getattr(self, name)
            if now not in (defaults[name], value):
                raise ConfigError(
                    f"{name} is {now!r}, but TRL's settings beside it say {value!r}. Leave one of them out."
                )
            setattr(self, name, value)
        super().__post_init__()
        check_loss(self.loss, self.loss_parameters, self.reference)

    @property
    def losses(self) -> dict[PreferenceLoss, float]:
        """The losses of the sum with their weights."""
        return self.loss if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def loss_parameters(self) -> LossParameters:
        """What the single losses have for themselves."""
        return LossParameters(**{each.name: getattr(self, each.name) for each in fields(LossParameters)})

    def negatives(self) -> NegativesConfig | None:
        """``on_policy``, checked: a ConfigError names each setting that is unknown or wrong."""
        return None if self.on_policy is None else build(NegativesConfig, self.on_policy, path=("on_policy",))
