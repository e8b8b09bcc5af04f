"""Every knob of a run, as frozen dataclasses. No torch here, so that ``cwdpo --help`` is instant."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator
from pydantic.dataclasses import dataclass

from cwdpo.config.limits import STRICT, checked_every, checked_floor, limit, names_among, not_empty
from cwdpo.config.model import LoraConfig as LoraConfig
from cwdpo.config.model import ModelConfig as ModelConfig
from cwdpo.config.model import QuantizationConfig as QuantizationConfig
from cwdpo.config.negatives import NegativesConfig, check_curriculum
from cwdpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Which rows are trained on."""

    train: Annotated[str | list[str], not_empty("data.train", advice="Write the path of a JSONL file of preferences.")]
    """Files or directories of rows; relative paths resolve against the recipe file."""

    eval: str | None = None
    image_root: str | None = None
    """Where relative image paths start, and what they may not leave; by default the data file's own directory."""

    stage1_fraction: Annotated[
        float, limit("data.stage1_fraction", above=0, at_most=1, advice="To skip a stage, leave it out.")
    ] = 0.75
    """Share of the training rows that stage 1 sees; stage 2 sees the others (the paper's 75/25)."""

    max_length: Annotated[
        int | None, limit("data.max_length", at_least=2, advice="Write null for the model's own limit.")
    ] = None
    """Most tokens in prompt and answer together; a longer row stops the run. Null takes the model's own limit."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CoolingConfig:
    """How much easy negatives are held back (the paper's w_c). ``cooling: null`` means plain DPO."""

    floor: Annotated[float | str, AfterValidator(checked_floor)] = "gentle"
    """l_floor: ``gentle``, ``mean``, ``quantile:0.5`` (each measured once before stage 2) or nats per token."""

    temperature: Annotated[
        float, limit("cooling.temperature", above=0, advice="To switch cooling off, write `cooling: null`.")
    ] = 0.3
    """tau, nats per token. Smaller makes the easy/hard switch sharper."""

    detach: bool = True
    """Treat the weight as a constant in the backward pass."""

    constant: Annotated[
        float | None, limit("cooling.constant", at_least=0, at_most=1, advice="Write null for the paper's weight.")
    ] = None
    """One weight for every negative in place of the paper's (DPO-Shift, arXiv 2502.07599), for ablations."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage1Config:
    """Smooth supervised fine-tuning with gentle negatives."""

    objective: Literal["constrained", "smoothed", "plain"] = "constrained"
    """The paper's body (a hinge on the negatives' NLL), its abstract (label-smoothed negatives), or plain SFT."""

    penalty: Annotated[float, limit("stage1.penalty", at_least=0, advice="For plain SFT write `objective: plain`.")] = (
        0.1
    )
    """lambda: weight of the gentle-negative term."""

    ceiling: Annotated[float, limit("stage1.ceiling", above=0, advice="Try 2.0 nats per token.")] = 2.0
    """C, nats per token: the hinge is idle while the gentle negatives' mean NLL is above it (``constrained``)."""

    epsilon: Annotated[float, limit("stage1.epsilon", above=0, below=1, advice="Try 0.1.")] = 0.1
    """Label smoothing of the gentle negative's cross-entropy (``smoothed``)."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stage2Config:
    """Cooling-weighted DPO against the model that stage 1 left."""

    beta: Annotated[float, limit("stage2.beta", above=0, advice="Try 0.1.")] = 0.1
    """Inverse temperature of the implicit reward."""

    loss: Literal["sigmoid"] = "sigmoid"
    cooling: CoolingConfig | None = field(default_factory=CoolingConfig)
    reference: Literal["cached", "live"] = "cached"
    """``cached`` computes the reference once and keeps it on disk; ``live`` runs it beside the policy at every step."""

    reference_batch_size: Annotated[
        int | None, limit("stage2.reference_batch_size", at_least=1, advice="Write null for the evaluation batch size.")
    ] = None
    """Rows at a time while the reference is computed, which needs no gradients; null: the evaluation batch size."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Overrides the recipe's ``trainer`` for this stage."""


PROBE_GROUPS = (
    "chosen",
    "rejected",
    "gentle",
    "longer",
    "shorter",
    "greedy",
    "on_policy",
    "shuffled",
    "other_answer",
    "other_image",
    "blank",
)
"""Answer groups that probes know (``cwdpo.records.lines.PROBE_GROUPS``; neither module may import the other)."""

SIGNS = (
    "non_finite_loss",
    "reward_at_start",
    "squeezing",
    "likelihood_displacement",
    "false_negatives",
    "overconfidence",
    "reference_drift",
    "image_blindness",
    "length_shortcut",
    "easy_negative_saturation",
    "over_cooling",
    "stale_contrast",
    "gradient_spikes",
    "stalled_learning",
)
"""What a diagnosis can find (``cwdpo.diagnosis.signs.SIGNS``, which is a layer above)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProbesConfig:
    """Held-out answers that are measured while the model learns. ``probes: null`` measures none."""

    rows: Annotated[int, limit("probes.rows", at_least=1, advice="To read nothing write `probes: null`.")] = 32
    """Rows in the probe set: of ``data.eval`` where there is one, else of the training rows."""

    every: Annotated[int | str, AfterValidator(checked_every)] = "auto"
    """Steps between readings. ``auto`` measures what one costs, and reads as often as adds a tenth to the run's time.
    The first and the last step always have a reading."""

    groups: Annotated[
        list[str] | Literal["all"], names_among("probes.groups", PROBE_GROUPS, what="an answer group")
    ] = "all"
    """Answers that are measured. ``chosen`` always is."""

    stop_on: Annotated[list[str], names_among("probes.stop_on", SIGNS, what="a finding")] = field(default_factory=list)
    """End a stage early when the diagnosis finds one of these."""

    patience: Annotated[int, limit("probes.patience", at_least=1, advice="Try 2.")] = 2
    """Readings in a row that must show the same finding before the stage ends."""

    tolerance: Annotated[float, limit("probes.tolerance", at_least=0, advice="Try 0.02 nats per token.")] = 0.02
    """Nats per token that the chosen answers may lose: a smaller fall stops nothing, and is no bar to the best."""

    keep_best: bool = False
    """Let the stage leave the model of its best reading, not of its last step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FeaturesConfig:
    """Where a frozen vision tower's features are kept, so that each image is encoded once a run.

    Used with the engines ``auto`` and ``tree`` where neither the tower nor its projector trains; the run's summary says
    whether it was. ``features: null`` encodes every image at every step.
    """

    memory_mb: Annotated[int, limit("features.memory_mb", at_least=0, advice="Write `features: null` for none.")] = 1024
    """Most megabytes of main memory in each process; the longest unused go first. An image has its number of tokens
    times the language model's hidden size values: 4 MB for 1,024 tokens of a 3B model in bfloat16."""

    disk_mb: Annotated[int, limit("features.disk_mb", at_least=0, advice="Write 0 to keep none on disk.")] = 0
    """Most megabytes in the run directory's ``features/``, for what memory does not hold and for ``--resume``."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """A whole run. Leave out a stage to skip it."""

    model: ModelConfig
    data: DataConfig
    stage1: Stage1Config | None = None
    stage2: Stage2Config | None = None
    negatives: NegativesConfig | None = None
    """Negatives that stage 2 samples from the policy while it trains; null takes those of the rows alone."""

    probes: ProbesConfig | None = field(default_factory=ProbesConfig)
    engine: Literal["auto", "tree", "plain"] = "auto"
    features: FeaturesConfig | None = field(default_factory=FeaturesConfig)
    trainer: dict[str, Any] = field(default_factory=dict)
    """Passed to ``TrainingArguments`` as it is."""

    seed: Annotated[int, limit("seed", at_least=0, below=2**32, advice="Try 0.")] = 0
    output_dir: Annotated[str, not_empty("output_dir", advice="Write the directory to fill.")] = "runs/cwdpo"
    """The run directory; a relative path starts at the working directory."""

    @model_validator(mode="after")
    def _has_a_stage_with_rows(self) -> "Recipe":
        if self.stage1 is None and self.stage2 is None:
            raise ConfigError("no stage is left, so nothing would train. Write `stage1: {}`, `stage2: {}` or both.")
        if self.stage1 is not None and self.stage2 is not None and self.data.stage1_fraction == 1:
            raise ConfigError(
                "data.stage1_fraction is 1, so stage 2 would have no rows. Write 0.75, or leave stage2 out."
            )
        probes = self.probes or ProbesConfig()
        if self.stage2 is not None:
            check_curriculum(self.negatives, every=None if self.probes is None else probes.every, groups=probes.groups)
        return self
