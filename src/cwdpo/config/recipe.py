"""Every setting of a run, as frozen dataclasses: the sections in a recipe's order, and last the :class:`Recipe` itself.

A setting, its default, its limits and its unit stand here and nowhere else; the trainers' config classes take them from
here. No torch, so that ``cwdpo --help`` is instant.
"""

import os
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import AfterValidator, model_validator
from pydantic.dataclasses import dataclass

from cwdpo.config.limits import (
    ROWS,
    STRICT,
    Called,
    checked_endpoint,
    checked_judge,
    limit,
    names_among,
    not_empty,
    number_or_floor_rule,
    number_or_quantile,
    schedule_of,
)
from cwdpo.errors import ConfigError
from cwdpo.records import PROBE_GROUPS, SIGN_NAMES, Stage

EngineName: TypeAlias = Literal["auto", "tree", "plain"]
Objective: TypeAlias = Literal["constrained", "smoothed", "plain"]
"""Of stage 1: the paper's body (a hinge on the negatives' NLL), its abstract (label-smoothed negatives), plain SFT."""

PreferenceLoss: TypeAlias = Literal[
    "sigmoid", "robust", "ipo", "simpo", "dpop", "cal_dpo", "beta_dpo",
    "wpo", "ld_dpo", "apo_zero", "apo_down", "bco", "nll", "anchor", "image",
]  # fmt: skip
"""Of stage 2, see docs/losses.md; ``sigmoid`` is DPO, and with cooling CW-DPO."""

_ONLY_CHOSEN: tuple[PreferenceLoss, ...] = ("nll", "anchor", "image")
_WITHOUT_REFERENCE: tuple[PreferenceLoss, ...] = ("simpo", "nll")
_WITH_RUNNING_MEAN: tuple[PreferenceLoss, ...] = ("beta_dpo", "bco")

CoolingScales: TypeAlias = Literal["rejected", "pair"]
"""What the cooling weight scales: the rejected answer's log-ratio (the paper), or the whole pair's loss."""

ReferenceKind: TypeAlias = Literal["cached", "live"]
"""``cached`` computes the reference once and keeps it on disk; ``live`` runs it beside the policy at every step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """Low-rank adapters; ``lora: null`` trains all weights."""

    r: Annotated[int, limit(at_least=1, advice="To train all weights write `lora: null`.")] = 16
    """Rank of the adapters."""

    alpha: Annotated[int, limit(at_least=1, advice="Try twice lora.r.")] = 32
    """Scale; the adapter's update is multiplied by alpha / r."""

    dropout: Annotated[float, limit(at_least=0, below=1, advice="Try 0.05.")] = 0.0
    """Dropout inside the adapters. Above 0 the reward of step 0 is no longer exactly 0 in training mode."""

    target_modules: Annotated[str | list[str], not_empty("Write language.")] = "language"
    """``language`` (every linear layer of the language model), ``all-linear``, a regular expression or names."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuantizationConfig:
    """Load the frozen base in 4 or 8 bits (QLoRA); needs ``lora`` and a GPU."""

    bits: Literal[4, 8] = 4
    """Bits of a weight of the base."""

    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Kind of 4-bit number; ``nf4`` suits weights, which are spread like a normal distribution."""

    double: bool = True
    """Quantise the quantisation constants too."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """Which model is trained, and which part of it."""

    name_or_path: Annotated[
        str, not_empty("Write a local directory or a hub name."), Called("a local directory or a hub name")
    ]
    """A local directory or a hub name that ``AutoModelForImageTextToText`` loads."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; ``auto`` is the checkpoint's own."""

    attn_implementation: str | dict[Literal["text", "vision"], str] | None = None
    """``sdpa``, ``eager`` or ``flash_attention_2``, of the whole model or as ``{text: ..., vision: ...}``; ``auto`` is
    FlashAttention 2 for the vision tower where it is installed, on a GPU and in 16 bits, and ``sdpa`` for the text;
    null leaves the choice to transformers."""

    lora: LoraConfig | None = None
    quantization: QuantizationConfig | None = None
    freeze_vision: bool = True
    """Keep the vision tower as it is; the projector and the language model train."""

    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""

    @model_validator(mode="after")
    def _quantized_base_needs_adapters(self) -> "ModelConfig":
        if self.quantization is not None and self.lora is None:
            raise ConfigError(
                "model.quantization freezes the base, and without model.lora nothing would train. "
                "Write `lora: {}` beside it, or take quantization out."
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Which rows are trained on."""

    train: Annotated[
        str | list[str],
        not_empty("Write the path of a JSONL file of preferences."),
        Called("the path of a file of rows, or a list of paths"),
    ]
    """Files, patterns or directories of rows, or ``hf:owner/name:split``; relative paths start at the recipe file."""

    eval: Annotated[str | None, ROWS] = None
    """Held-out rows for probes and the Trainer's evaluation; null asks probes about training rows."""

    image_root: Annotated[str | list[str] | None, Called("a directory, a list of directories, or null")] = None
    """Where relative image paths start, by default the data file's own directory. No other directory is read from; of
    several, all are, and a name that is not in the first is looked for in the others."""

    stage1_fraction: Annotated[
        float, limit(above=0, at_most=1, advice="Write a share such as 0.75; to skip a stage, leave it out.")
    ] = 0.75
    """Share of the training rows that stage 1 sees; stage 2 sees the others (the paper's 75/25)."""

    max_length: Annotated[int | None, limit(at_least=2, advice="Write null for the model's own limit.")] = None
    """Most tokens in prompt and answer together; a longer row stops the run. Null takes the model's own limit."""

    min_pixels: Annotated[
        int | None, limit(at_least=1, advice="Write such as 50176, or null for the processor's own limit.")
    ] = None
    """Fewest pixels that the processor enlarges an image to; of processors with such limits, as Qwen-VL's."""

    max_pixels: Annotated[
        int | None, limit(at_least=1, advice="Write such as 1048576, or null for the processor's own.")
    ] = None
    """Most pixels that it leaves an image; each 28 x 28 pixels are one token for Qwen2.5-VL, 32 x 32 for Qwen3-VL."""

    @property
    def train_files(self) -> list[Path]:
        """``train`` as a list of paths."""
        return [Path(self.train)] if isinstance(self.train, str) else list(map(Path, self.train))

    @property
    def image_root_path(self) -> Path | None:
        """``image_root`` as ``--image-root`` has it: several as in ``PATH``."""
        if self.image_root is None or isinstance(self.image_root, str):
            return None if self.image_root is None else Path(self.image_root)
        return Path(os.pathsep.join(self.image_root))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage1Config:
    """Smooth supervised fine-tuning with gentle negatives."""

    objective: Objective = "constrained"
    """``constrained`` (the paper's hinge on gentle negatives), ``smoothed`` (label smoothing), or ``plain`` SFT."""

    penalty: Annotated[float, limit(at_least=0, advice="For plain SFT write `objective: plain`.")] = 0.1
    """lambda: weight of the gentle-negative term."""

    ceiling: Annotated[float, limit(above=0, advice="Try 2.0 nats per token.")] = 2.0
    """C, nats per token: the hinge is idle while the gentle negatives' mean NLL is above it (``constrained``)."""

    epsilon: Annotated[float, limit(above=0, below=1, advice="Try 0.1.")] = 0.1
    """Label smoothing of the gentle negative's cross-entropy (``smoothed``)."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CoolingConfig:
    """How much easy negatives are held back (the paper's w_c). ``cooling: null`` means plain DPO."""

    floor: Annotated[
        float | str,
        number_or_floor_rule(
            "Write chosen, gentle, mean or quantile:0.5, with or without ` - 2 tau`, or a number of nats per token."
        ),
    ] = "chosen - 2 tau"
    """l_floor, nats per token: a number, or measured once before stage 2 as the mean log-prob of the ``chosen`` or
    ``gentle`` answers, the ``mean`` or ``quantile:0.5`` of all rejected ones, or so much lower: ``chosen - 2 tau``."""

    temperature: Annotated[float, limit(above=0, advice="To switch cooling off, write `cooling: null`.")] = 0.3
    """tau, nats per token. Smaller makes the easy/hard switch sharper."""

    detach: bool = True
    """Treat the weight as a constant in the backward pass."""

    constant: Annotated[float | None, limit(at_least=0, at_most=1, advice="Write null for the paper's weight.")] = None
    """One weight for every negative in place of the paper's (DPO-Shift, arXiv 2502.07599), for ablations."""

    scales: CoolingScales = "rejected"
    """What the weight scales: the ``rejected`` answer's log-ratio (the paper), or the loss of the whole ``pair``."""

    drop_below: Annotated[float, limit(at_least=0, below=1, advice="Try 0.05; 0 drops none.")] = 0.0
    """Pairs with a smaller weight are skipped. The paper keeps them: they then only raise the chosen answer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossParameters:
    """What single losses of stage 2 have for themselves, each named by its loss; the docs give the formulas."""

    robust_noise: Annotated[float, limit(at_least=0, below=0.5, advice="Try 0.1.")] = 0.1
    """eps of ``robust``: share of pairs whose two answers are the wrong way round."""

    simpo_margin: Annotated[float, limit(at_least=0, advice="Try 0.5.")] = 0.5
    """gamma of ``simpo``: margin that a pair should have, in units of the loss (beta times nats per token)."""

    dpop_penalty: Annotated[float, limit(at_least=0, advice="Try 50; DPO is 0.")] = 50.0
    """lambda of ``dpop``: cost of a nat that the chosen answer lies below its reference."""

    cal_dpo_weight: Annotated[float, limit(at_least=0, advice="Try 0.5.")] = 0.5
    """Weight of the two targets of ``cal_dpo``."""

    beta_dpo_scale: Annotated[float, limit(at_least=0, advice="Try 0.6; DPO is 0.")] = 0.6
    """alpha of ``beta_dpo``: how far beta follows the step's mean reward margin."""

    ld_dpo_alpha: Annotated[float, limit(at_least=0, at_most=1, advice="Try 0.5; DPO is 1.")] = 0.5
    """alpha of ``ld_dpo``: weight of tokens beyond the length of the shorter answer."""

    anchor_reward: float = 0.0
    """delta of ``anchor``: reward above which the chosen answer should stay."""

    running_momentum: Annotated[float, limit(at_least=0, below=1, advice="Try 0.9.")] = 0.9
    """Share of the old value in the running means of ``bco`` (rewards) and ``beta_dpo`` (margins), a step."""

    @property
    def changed(self) -> list[str]:
        """The names of those that are not at their default."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]


def check_loss(
    loss: PreferenceLoss | Mapping[PreferenceLoss, float], parameters: LossParameters, reference: str
) -> None:
    """Refuse, with a ConfigError, settings of stage 2's loss that do not go together."""
    names = [loss] if isinstance(loss, str) else list(loss)
    if not names:
        raise ConfigError("loss is empty. Write one name, such as sigmoid, or names with weights.")
    if isinstance(loss, Mapping) and not all(weight > 0 for weight in loss.values()):
        raise ConfigError(f"loss is {dict(loss)}, but each weight must be > 0. Take out the losses without weight.")
    if set(names) <= {*_ONLY_CHOSEN}:
        raise ConfigError(
            f"loss {' and '.join(names)} reads no rejected answer. Add one that does, such as "
            f"`loss: {{sigmoid: 1.0, {names[0]}: 1.0}}`, or train stage 1 alone."
        )
    for name in parameters.changed:
        owners = _WITH_RUNNING_MEAN if name == "running_momentum" else _owners(name)
        if not {*owners} & {*names}:
            raise ConfigError(
                f"{name} belongs to loss {' and '.join(owners)}, but loss is {' and '.join(names)}. Take it out."
            )
    if "ld_dpo" in names and reference != "live":
        raise ConfigError(
            "loss ld_dpo reads the reference token by token, and the cache holds sums. Write `reference: live`."
        )
    if set(names) <= {*_WITHOUT_REFERENCE} and reference == "live":
        raise ConfigError(
            f"reference is live, but loss {' and '.join(names)} has no reference: it would run for the log alone. "
            "Write `reference: cached`, which is computed once."
        )


def _owners(parameter: str) -> list[PreferenceLoss]:
    return [name for name in get_args(PreferenceLoss) if parameter.startswith(f"{name}_")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage2Config:
    """Cooling-weighted DPO, or another preference loss with cooling, against the model that stage 1 left."""

    beta: Annotated[float, limit(above=0, advice="Try 0.1.")] = 0.1
    """Inverse temperature of the implicit reward; in ``simpo``, ``ipo`` and ``cal_dpo`` what docs/losses.md says."""

    loss: PreferenceLoss | dict[PreferenceLoss, float] = "sigmoid"
    """One loss, or several with their weights in a sum, such as ``{sigmoid: 0.8, bco: 0.2, nll: 1}`` (MPO)."""

    loss_parameters: LossParameters = field(default_factory=LossParameters)
    cooling: CoolingConfig | None = field(default_factory=CoolingConfig)
    reference: Annotated[ReferenceKind, Called("cached or live; the reference is the model that it starts from")] = (
        "cached"
    )
    """``cached`` computes log pi_ref once and keeps it on disk; ``live`` runs the reference at every step."""

    reference_batch_size: Annotated[
        int | None, limit(at_least=1, advice="Write null for the evaluation batch size.")
    ] = None
    """Rows at a time while the reference is computed, which needs no gradients; null: the evaluation batch size."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""

    @model_validator(mode="after")
    def _loss_fits(self) -> "Stage2Config":
        check_loss(self.loss, self.loss_parameters, self.reference)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NegativesConfig:
    """On-policy negatives. ``negatives: null`` trains on the rows' own alone."""

    on_policy_fraction: Annotated[float | list[list[float]], schedule_of("share")] = 0.5
    """Share of negatives that come from the policy, or a schedule: points ``[progress, share]`` joined by straight
    lines, such as ``[[0, 0], [0.5, 0.8]]``; progress goes from 0 to 1 over stage 2."""

    refresh: Annotated[
        int | Literal["epoch", "auto"], limit(at_least=1, advice="It counts steps: write 1 or more, epoch or auto.")
    ] = "epoch"
    """When to sample again: every epoch, every so many steps, or ``auto``: when the mean w_c of the sampled negatives
    has fallen to half of what it was, so that they hardly teach any more."""

    k: Annotated[int, limit(at_least=1, advice="Try 1.")] = 1
    """Answers sampled for each prompt; the more, the more prompts keep one after verification."""

    per_prompt: Annotated[int | None, limit(at_least=1, advice="Write null for as many as the row has.")] = None
    """Negatives of a prompt in a step, from both sources; null takes as many as the row has. The loss is their mean."""

    temperature: Annotated[float, limit(above=0, advice="Try 1.0.")] = 1.0
    """Of sampling."""

    top_p: Annotated[float, limit(above=0, at_most=1, advice="Write 1.0 for all tokens.")] = 1.0
    """Sample from the smallest set of tokens with this probability only."""

    max_new_tokens: Annotated[int, limit(at_least=1, advice="Try 256.")] = 256
    """Longest sample; one that does not end by then is dropped, because the policy never said it."""

    batch_size: Annotated[int, limit(at_least=1, advice="Try 64.")] = 64
    """Answers sampled at one time: fewer take less memory, more less time. Samples follow from it, as from the seed."""

    max_overlap: Annotated[float | None, limit(above=0, at_most=1, advice="Write null to keep close ones.")] = None
    """Drop samples whose n-gram overlap with a right answer is at least this. Null: hard negatives are close ones."""

    length_gap: Annotated[float | None, limit(above=0, advice="Write null to keep all lengths.")] = None
    """Drop samples whose number of words differs from every right answer's by more than this share of it."""

    drop_easier_than: Annotated[
        float | str | None,
        number_or_quantile(logprob=True, advice="Write quantile:0.1, a number of nats per token, or null."),
    ] = None
    """Drop negatives that are too easy: their lbar under the policy is below this number (nats per token), or among the
    lowest of a refresh (``quantile:0.1``: the lowest tenth). This holds for samples and for the rows' own negatives. A
    row's own negatives are still used where nothing else is left."""

    drop_ches_above: Annotated[
        float | str | None, number_or_quantile(logprob=False, advice="Write quantile:0.9, a number, or null.")
    ] = None
    """The same for negatives whose length-normalised CHES similarity to the right answer under the policy (arXiv
    2410.08847) is above this, or above ``quantile:q``: pushing them down drags the right answer along."""

    curriculum: Annotated[float | list[list[float]] | Literal["auto"] | None, schedule_of("level")] = None
    """Which of its candidates, ordered by lbar under the policy, a prompt takes: a level from 0, the easiest that is
    hard enough, to 1, the hardest; points ``[progress, level]``; or ``auto``: probes drive it. Null: any of them."""

    judge: Annotated[str | None, AfterValidator(checked_judge)] = None
    """What says which answers are right and so no negatives: ``module:function``, ``same_words``, or a server as
    ``URL#MODEL``; see docs/on_policy.md."""

    endpoint: Annotated[str | None, AfterValidator(checked_endpoint)] = None
    """Sample from this OpenAI-compatible server, which then loads each refresh's adapter; null samples here."""

    on_error: Literal["continue", "stop"] = "continue"
    """Where sampling fails: go on with the negatives there are, or stop with a checkpoint."""

    @property
    def measures_own(self) -> bool:
        """Whether the rows' own negatives are measured under the policy at every refresh, beside the samples."""
        return any(rule is not None for rule in (self.curriculum, self.drop_easier_than, self.drop_ches_above))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProbesConfig:
    """Held-out answers that are measured while the model learns. ``probes: null`` measures none."""

    rows: Annotated[
        int | Literal["auto"], limit(at_least=1, advice="To read nothing write `probes: null`, or auto.")
    ] = "auto"
    """Rows in the probe set, from ``data.eval`` if there is one, else from the training rows. ``auto``: 4 rows in a
    short run, 32 in a long one. At least a quarter of them also get the slow questions (other images, the model's own
    answers). In all, a tenth of the run's work. A number: so many rows, each with all questions."""

    every: Annotated[
        int | Literal["auto"],
        limit(at_least=1, advice="It counts steps: write 1 or more, or auto. To read nothing write `probes: null`."),
    ] = "auto"
    """Steps between readings. ``auto`` measures what one costs, and reads as often as adds a tenth to the run's time.
    The first and the last step always have a reading."""

    groups: Annotated[list[str] | Literal["all"], names_among(PROBE_GROUPS, what="an answer group")] = "all"
    """Answers that are measured. ``chosen`` always is."""

    stop_on: Annotated[list[str], names_among(SIGN_NAMES, what="a finding")] = field(default_factory=list)
    """End a stage early when the diagnosis finds one of these."""

    patience: Annotated[int, limit(at_least=1, advice="Try 2.")] = 2
    """Readings in a row that must show the same finding before the stage ends."""

    tolerance: Annotated[float, limit(at_least=0, advice="Try 0.02 nats per token.")] = 0.02
    """Nats per token that the chosen answers may lose. A smaller fall neither ends a stage nor rules out a reading as
    best."""

    keep_best: bool = False
    """Let the stage leave the model of its best reading, not of its last step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeaturesConfig:
    """Where a frozen vision tower's features are kept, so that each image is encoded once a run.

    Used with the engines ``auto`` and ``tree`` where neither the tower nor its projector trains; the run's summary says
    whether it was. ``features: null`` encodes every image at every step.
    """

    memory_mb: Annotated[
        int | Literal["auto"], limit(at_least=0, advice="Write `features: null` for none, or auto.")
    ] = "auto"
    """Most megabytes of main memory in each process, which the images that come first fill; ``auto``: a quarter of what
    is free, divided among the machine's processes. An image has its number of tokens times the language model's hidden
    size values: 4 MB for 1,024 tokens of a 3B model in bfloat16."""

    disk_mb: Annotated[int | Literal["auto"], limit(at_least=0, advice="Write 0 to keep none on disk, or auto.")] = (
        "auto"
    )
    """Most megabytes in the run directory's ``features/``, for what memory does not hold and for ``--resume``.
    ``auto``: what all images need, where memory does not hold them and they fit into a quarter of the free disk; the
    files are removed when the run ends."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig:
    """Measure the run's model at the end, beside the one it started from, as ``cwdpo evaluate`` does.

    ``evaluate: null`` measures nothing.
    """

    data: Annotated[
        str, not_empty("Write the path of rows that are not trained on."), Called("the path of a file of rows")
    ]
    """A file or directory of rows, best held out; a relative path starts at the recipe file. Images start at
    ``data.image_root`` where that is set."""

    rows: Annotated[int | None, limit(at_least=1, advice="Write null for all.")] = None
    """Most rows; more are sampled, by ``seed``. Null takes all."""

    generate: bool = True
    """Let both models answer too, which takes most of the time."""

    max_new_tokens: Annotated[int, limit(at_least=1, advice="Try 256.")] = 256
    """Longest generated answer."""

    vocabulary: Annotated[str | None, Called("the path of a file of objects, or null")] = None
    """A file of objects for hallucination: one a line, other words for it after commas."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run. Leave out a stage to skip it."""

    preset: Literal["paper"] | None = None
    """``paper``: a recipe file that leaves them out gets the settings of arXiv 2510.11978 in place of this project's
    defaults: the floor is the ``mean`` over all rejected answers, and negatives are sampled from the policy too."""

    model: ModelConfig
    data: DataConfig
    stage1: Stage1Config | None = None
    stage2: Stage2Config | None = None
    negatives: NegativesConfig | None = None
    """Negatives that stage 2 samples from the policy while it trains; null takes those of the rows alone."""

    probes: ProbesConfig | None = field(default_factory=ProbesConfig)
    engine: EngineName = "auto"
    """``tree`` computes a prompt once for all its answers, ``plain`` one row an answer, ``auto`` tree where exact."""

    features: FeaturesConfig | None = field(default_factory=FeaturesConfig)
    evaluate: EvaluateConfig | None = None
    """What the run measures of its model at the end; null measures nothing."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to ``TrainingArguments`` as it is."""

    seed: Annotated[int, limit(at_least=0, below=2**32, advice="Try 0.")] = 0
    """Of everything random: the division of rows, their order, new adapters, samples."""

    output_dir: Annotated[
        str,
        not_empty("Write the directory to fill."),
        AfterValidator(os.path.expanduser),
        Called("a directory to fill"),
    ] = "runs/cwdpo"
    """The run directory; a relative path starts at the working directory."""

    @property
    def stages(self) -> Mapping[Stage, Stage1Config | Stage2Config]:
        """Settings of the stages that the recipe has, in order."""
        found: Mapping[Stage, Stage1Config | Stage2Config | None] = {"stage1": self.stage1, "stage2": self.stage2}
        return {stage: settings for stage, settings in found.items() if settings is not None}

    @model_validator(mode="after")
    def _has_a_stage_with_rows(self) -> "Recipe":
        if self.stage1 is None and self.stage2 is None:
            raise ConfigError("no stage is left, so nothing would train. Write `stage1: {}`, `stage2: {}` or both.")
        if self.stage1 is not None and self.stage2 is not None and self.data.stage1_fraction == 1:
            raise ConfigError(
                "data.stage1_fraction is 1, so stage 2 would have no rows. Write 0.75, or leave stage2 out."
            )
        return self

    @model_validator(mode="after")
    def _probes_can_drive_the_curriculum(self) -> "Recipe":
        """They must, where it is ``auto``, and in a resumed run as in an uninterrupted one."""
        if self.stage2 is None or self.negatives is None or self.negatives.curriculum != "auto":
            return self
        if self.probes is None:
            wrong = ", but probes is null. Write `probes: {every: 10}`, or `curriculum: [[0, 0], [1, 1]]`."
        elif self.probes.every == "auto":
            wrong = (
                ", but with `probes.every: auto` the machine's speed would choose the negatives. Write a number of "
                "steps, such as `probes: {every: 10}`."
            )
        elif self.probes.groups != "all" and not {"gentle", "rejected"} & {*self.probes.groups}:
            wrong = " by the margin, but probes.groups has no negatives. Add gentle or rejected to it."
        else:
            return self
        raise ConfigError(f"negatives.curriculum is auto, which the probes drive{wrong}")
