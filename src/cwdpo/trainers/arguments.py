"""Training arguments of both stages: ``TrainingArguments`` and the few settings that the method adds."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from transformers import TrainingArguments

from cwdpo.config.checking import build
from cwdpo.config.recipe import NegativesConfig
from cwdpo.errors import ConfigError


@dataclass
class AnswerArguments(TrainingArguments):
    """What both stages share. Every other setting is the Trainer's own."""

    max_length: int | None = field(default=None, metadata={"help": "Most tokens in prompt and answer; longer stops."})
    engine: Literal["auto", "tree", "plain"] = field(default="auto", metadata={"help": "How log-probs are computed."})
    length_buckets: bool = field(
        default=False, metadata={"help": "Put rows of like length (images, prompt and all answers) in the same step."}
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={"help": "Most tokens that pass through the model at once, padding and repeated prompts included."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must be off: rows are read whole."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off, so that a NaN loss is seen."})
    ddp_broadcast_buffers: bool | None = field(
        default=False,
        metadata={"help": "Off: ranks may make unequal numbers of passes, and buffers are constant."},
    )

    def __post_init__(self) -> None:
        """Refuse what would silently do nothing here.

        Raises:
            ConfigError: a setting has no effect on these trainers.
        """
        super().__post_init__()
        if self.remove_unused_columns:
            raise ConfigError("remove_unused_columns must be false: images and answers are read from the row itself.")
        if self.label_smoothing_factor:
            raise ConfigError(
                "label_smoothing_factor has no effect on these losses. For smoothed gentle negatives write "
                "`stage1: {objective: smoothed, epsilon: ...}`."
            )
        if self.use_liger_kernel:
            raise ConfigError("use_liger_kernel replaces the loss that is computed here. Leave it out.")
        if self.max_tokens_per_batch is not None and self.max_tokens_per_batch < 1:
            raise ConfigError(
                f"max_tokens_per_batch is {self.max_tokens_per_batch}, but must be at least 1. No limit: leave it out."
            )
        if self.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
            raise ConfigError(
                f"train_sampling_strategy `{self.train_sampling_strategy}` needs rows of token ids. Write "
                "`length_buckets: true`, which counts images and all answers, or `max_tokens_per_batch: 8192`."
            )
        if self.n_gpu > 1:
            raise ConfigError(
                f"{self.n_gpu} GPUs in one process means DataParallel, which cannot split a batch of prompts with "
                "answers. Start with `torchrun --nproc-per-node N -m cwdpo train ...`, or set CUDA_VISIBLE_DEVICES=0."
            )


def argument_types() -> dict[str, Any]:
    """What both stages take, by name, with its declared type."""
    types = get_type_hints(AnswerArguments)
    return {each.name: types[each.name] for each in fields(AnswerArguments) if each.init}


@dataclass
class SmoothSFTConfig(AnswerArguments):
    """Settings of stage 1, see :class:`cwdpo.config.recipe.Stage1Config`."""

    objective: Literal["constrained", "smoothed", "plain"] = "constrained"
    penalty: float = 0.1
    ceiling: float = 2.0
    epsilon: float = 0.1


@dataclass
class CWDPOConfig(AnswerArguments):
    """Settings of stage 2, see :class:`cwdpo.config.recipe.Stage2Config`."""

    beta: float = 0.1
    cooling: bool = field(default=True, metadata={"help": "False is plain DPO."})
    cooling_floor: float | str = "gentle"
    cooling_temperature: float = 0.3
    cooling_detach: bool = True
    cooling_constant: float | None = field(default=None, metadata={"help": "One weight for every negative."})
    reference: Literal["cached", "live"] = "cached"
    reference_batch_size: int | None = field(
        default=None, metadata={"help": "Rows at a time in the reference pass; per_device_eval_batch_size by default."}
    )
    reference_dir: str | None = field(default=None, metadata={"help": "Default: output_dir/reference."})
    on_policy: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of cwdpo.config.recipe.NegativesConfig; None: the rows' alone."}
    )
    on_policy_dir: str | None = field(default=None, metadata={"help": "Default: output_dir/negatives."})

    def negatives(self) -> NegativesConfig | None:
        """``on_policy``, checked.

        Raises:
            ConfigError: one line for each setting that is unknown or wrong.
        """
        if self.on_policy is None:
            return None
        return build(NegativesConfig, self.on_policy, lambda path: ".".join(("on_policy", *map(str, path))))
