"""One stage of a run: its model, its trainer, its callbacks and loggers, and the model that it leaves."""

import difflib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, TrainerCallback, set_seed
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from cwdpo.config.recipe import ModelConfig, Recipe, Stage1Config
from cwdpo.config.recipe_file import dump_recipe
from cwdpo.data.encode import EncodedMemory
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, FeatureCache, features_of, make_engine, separate_engine
from cwdpo.errors import ConfigError, UserError, about
from cwdpo.models.adapters import add_lora, describe_base, load_adapter, quantization_config
from cwdpo.models.checkpoints import has_checkpoint, whole_checkpoints
from cwdpo.models.loading import load_policy, load_processor, some
from cwdpo.models.pixels import set_pixel_limits
from cwdpo.models.saving import save_checkpoint
from cwdpo.phases import phase
from cwdpo.probes import ProbeSize, choose_rows, own_answers
from cwdpo.probes.callback import Probing
from cwdpo.probes.size import size_within, whole
from cwdpo.recipes.publishing import is_of_hub
from cwdpo.recipes.resuming import NewIntervals, keep_rows, record_floor
from cwdpo.records import RunDirectory, Stage, write_json, write_text
from cwdpo.report.card import write_cards
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer
from cwdpo.trainers.arguments import arguments_from
from cwdpo.trainers.callbacks import MetricsRecorder, StopOnSignal, TensorBoardRecorder
from cwdpo.trainers.finite import broken_weights

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"

_INSTALL = {"azure_ml": "azureml-core", "flyte": "flytekit"}
"""What to install for a logger whose package has another name."""

StageTrainer: TypeAlias = SmoothSFTTrainer | CWDPOTrainer


class Interrupted(KeyboardInterrupt):
    """The user ended the run; the message says where it can go on from."""


@dataclass(frozen=True)
class RunContext:
    """What the stages of a run share."""

    recipe: Recipe
    run: RunDirectory
    rows: Sequence[Row]
    """Of all training files, before they were divided."""

    stage_rows: Mapping[Stage, Sequence[Row]]
    """Those that each stage trains on."""

    eval_rows: Sequence[Row] | None
    time_of_prompts: datetime
    probe_rows: Sequence[Row]
    """Those that probes ask about, the same in both stages."""

    probe_size: ProbeSize

    engine: Engine
    callbacks: Sequence[TrainerCallback]
    """The user's, and the run's clock."""

    reference: Path
    """Where the reference's log-probs are kept."""

    encoded: EncodedMemory

    def start(self, stage: Stage) -> Path | None:
        """The model that the stage before left; None where the stage starts from the recipe's own model."""
        return self.run.stage("stage1") if stage == "stage2" and self.recipe.stage1 is not None else None


def train_stage(context: RunContext, stage: Stage) -> None:
    """Train one stage and save its model; see :func:`cwdpo.recipes.run.run_recipe` for what it raises."""
    recipe, run = context.recipe, context.run
    with phase("loading"):
        trainer = stage_trainer(context, stage)
    if trainer.is_world_process_zero() and not run.has_begun:
        # not before: a start that failed leaves nothing to be in the way
        write_text(run.recipe, dump_recipe(recipe))
        keep_rows(run, recipe.data, context.rows, context.eval_rows)
        run.keep("prompts", {"time": context.time_of_prompts.isoformat()})
    whole: Any = trainer.model
    base = describe_base(whole) if trainer.is_sharded and isinstance(whole, PeftModel) else None
    watchers = stage_callbacks(context, stage, trainer)
    trainer.remove_callback(PrinterCallback)  # our own report in its place
    for callback in watchers.ordered:
        trainer.pop_callback(callback)  # the trainer added its own when it was made
        trainer.add_callback(callback)
    if isinstance(trainer, CWDPOTrainer):
        with phase("reference pass"):
            trainer.measure_reference()
        if trainer.floor is not None and trainer.is_world_process_zero():
            record_floor(run, recipe, trainer.floor)
    try:
        with phase("steps"):
            trainer.train(resume_from_checkpoint=has_checkpoint(run.checkpoints(stage)))  # a new run has none
    finally:
        watchers.release()
    if watchers.signals.received:
        raise Interrupted(
            f"{stage} stopped at step {trainer.state.global_step}; its checkpoint is in {run.checkpoints(stage)}."
        )
    features = features_of(trainer.engine)
    if features is not None:
        features.log_reached()
    probing = watchers.probing
    with phase("probes"):
        note = probing.finish() if probing is not None else {}
    if isinstance(trainer, CWDPOTrainer) and trainer.on_policy is not None:
        note["negatives"] = trainer.on_policy.note()
    if trainer.finite.skipped:
        note["skipped_steps"] = trainer.finite.skipped
        logger.warning(
            "%s skipped %d of its %d steps: their loss or gradient was not finite",
            stage,
            trainer.finite.skipped,
            trainer.state.global_step,
        )
    with phase("saving"):
        refuse_broken_weights(trainer, run, stage)
        _save(trainer, run, stage, note, base)


def stage_trainer(context: RunContext, stage: Stage) -> StageTrainer:
    """The trainer of a stage, with its model as it starts. In stage 2 every row has a rejected answer."""
    recipe, start = context.recipe, context.start(stage)
    set_seed(recipe.seed)  # new adapters begin at random values
    model = load_start(recipe.model, start)
    processor = recipe_processor(recipe, start)
    # after the model is loaded, which DeepSpeed's settings would divide
    own = {"reference_dir": str(context.reference)} if stage == "stage2" else {}
    args = stage_arguments(recipe, context.run, stage, has_eval=bool(context.eval_rows), **own)
    common: dict[str, Any] = {
        "model": model,
        "args": args,
        "processing_class": processor,
        "train_dataset": list(context.stage_rows[stage]),
        # none where the recipe wants no evaluation, and has `data.eval` for its probes
        "eval_dataset": None if args.eval_strategy == "no" else context.eval_rows,
        "engine": context.engine,
        "encoded": context.encoded,
    }
    if isinstance(args, SmoothSFTConfig):
        return SmoothSFTTrainer(**common)
    # a right answer of stage 1's rows is not a negative
    return CWDPOTrainer(**common, also_right=context.stage_rows.get("stage1", ()))


def recipe_processor(recipe: Recipe, checkpoint: Path | None = None) -> ProcessorMixin:
    """The processor of the recipe's model, or of the checkpoint that a stage left, with the limits on pixels."""
    source = checkpoint or recipe.model.name_or_path
    with about(None if checkpoint else "model.name_or_path"):
        processor = load_processor(source, trust_remote_code=recipe.model.trust_remote_code)
        return set_pixel_limits(processor, recipe.data.min_pixels, recipe.data.max_pixels)


def load_start(config: ModelConfig, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """The policy as a stage finds it; the checkpoint, full or adapters on the base, is what the stage before left."""
    lora, quantization = config.lora, config.quantization
    own_weights = checkpoint is not None and lora is None
    with about("model.quantization"):
        quantized = None if quantization is None else quantization_config(**asdict(quantization))
    with about(None if own_weights else "model.name_or_path"):
        model = load_policy(
            str(checkpoint) if own_weights else config.name_or_path,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
            freeze_vision=config.freeze_vision,
            trust_remote_code=config.trust_remote_code,
            quantization=quantized,
        )
    if lora is None:
        return model
    if checkpoint is not None:
        return load_adapter(model, checkpoint)
    with about("model.lora.target_modules"):
        return add_lora(model, **asdict(lora), freeze_vision=config.freeze_vision)


def run_engine(recipe: Recipe, run: RunDirectory, rows: Sequence[Row]) -> Engine:
    """The engine of a run, shared by stages, evaluation and reference with its checks and the features it keeps, of the
    images of all ``rows``; what it chooses, and why, stands in ``engine.json`` as soon as it is known."""
    kept = recipe.features
    features = None
    if kept is not None:
        directory = run.features if kept.disk_mb else None
        pictured = [row.images for row in rows if row.images]
        different = {
            images if all(isinstance(each, Path) for each in images) else i for i, images in enumerate(pictured)
        }
        features = FeatureCache(
            memory_mb=kept.memory_mb, directory=directory, disk_mb=kept.disk_mb, images=len(different)
        )
    on_choice = partial(write_json, run.engine) if is_main() else None
    return make_engine(recipe.engine, features=features, on_choice=on_choice)


def is_main() -> bool:
    """Whether this process writes the run's files; known before there is a trainer."""
    return int(os.environ.get("RANK", "0")) == 0


LEARNING_RATES: Mapping[Stage, tuple[float, float]] = {"stage1": (1e-5, 1e-4), "stage2": (5e-7, 5e-6)}
"""Where a recipe names none: of all weights, and of adapters. The Trainer's 5e-5 would ruin a model in stage 2."""


def stage_arguments(
    recipe: Recipe, run: RunDirectory, stage: Stage, *, has_eval: bool, **overrides: Any
) -> SmoothSFTConfig | CWDPOConfig:
    """The training arguments of a stage: our defaults, under the recipe's ``trainer``, the stage's own and overrides;
    nothing is written into ``run``."""
    settings = recipe.stages[stage]
    given = {key: value for key, value in (recipe.trainer | settings.trainer).items() if not is_of_hub(key)}
    shared: dict[str, Any] = {
        "learning_rate": LEARNING_RATES[stage][recipe.model.lora is not None],
        "num_train_epochs": 1,
        "logging_steps": 10,
        "logging_first_step": True,
        "save_total_limit": 2,
        "eval_strategy": "epoch" if has_eval else "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **given,
        "report_to": [name for name in wanted_loggers(given) if name != TENSORBOARD] or "none",  # that one is ours
        "output_dir": str(run.checkpoints(stage)),
        "seed": recipe.seed,
        **arguments_from(recipe, recipe.data),
        **overrides,
    }
    if isinstance(settings, Stage1Config):
        return SmoothSFTConfig(**arguments_from(settings), **shared)
    return CWDPOConfig(
        cooling=settings.cooling is not None,
        on_policy=None if recipe.negatives is None else asdict(recipe.negatives),
        on_policy_dir=str(run.negatives),
        **arguments_from(settings, settings.loss_parameters, settings.cooling),
        **shared,
    )


@dataclass(frozen=True)
class StageCallbacks:
    """A stage's callbacks, and those of them that are needed again after training."""

    ordered: Sequence[TrainerCallback]
    signals: StopOnSignal
    boards: Sequence[TensorBoardRecorder]
    probing: Probing | None

    def release(self) -> None:
        """Give back signals and files; also for a stage that an error ended."""
        self.signals.release()
        for board in self.boards:
            board.close()


def stage_callbacks(context: RunContext, stage: Stage, trainer: StageTrainer) -> StageCallbacks:
    """All callbacks of a stage, in the order in which each event reaches them. Before them come transformers' own: the
    one that decides at every step whether to log, save and evaluate, and those of ``report_to``."""
    signals = StopOnSignal()
    boards = []
    if TENSORBOARD in wanted_loggers(context.recipe.trainer | context.recipe.stages[stage].trainer):
        boards.append(TensorBoardRecorder(context.run.tensorboard(stage)))
    probing = _probing(context, stage, trainer, interrupted=lambda: signals.received is not None)
    ordered = [
        # the trainer's: negatives of a step are renewed before the step's reading, which may change how hard they are
        *trainer.own_callbacks(),
        # what a resumed run logs, saves and evaluates by is set before anything asks
        NewIntervals(),
        # drops what an interruption left behind a checkpoint, before the first reading adds to it
        MetricsRecorder(context.run, stage, histograms=lambda: trainer.histograms),
        *boards,
        # before the first reading, which may take long: Ctrl-C ends the run politely from here on
        signals,
        # the user's find files that are up to date; then the clock, which counts their time too
        *context.callbacks,
        # last: a reading sees the model, and the decision to stop, as all others have left them
        *([probing] if probing is not None else []),
    ]
    return StageCallbacks(ordered, signals, boards, probing)


def _probing(
    context: RunContext, stage: Stage, trainer: StageTrainer, *, interrupted: Callable[[], bool]
) -> Probing | None:
    """What watches a stage with probes, if the recipe wants any; a curriculum that is ``auto`` follows it."""
    recipe, probes = context.recipe, context.recipe.probes
    if probes is None or not context.probe_rows:
        return None
    if trainer.is_sharded:
        if probes.stop_on or probes.keep_best:
            raise ConfigError(
                "probes.stop_on and probes.keep_best need the whole model in each process, which FSDP and ZeRO-3 "
                "divide. Take them out, or train without sharding.",
                setting="probes.stop_on" if probes.stop_on else "probes.keep_best",
            )
        logger.warning("no probes: FSDP and ZeRO-3 divide the model. Use `cwdpo probe` on what the stage leaves.")
        return None
    engine = separate_engine(trainer.engine, recipe.engine, budget=trainer.args.max_tokens_per_batch)
    write = partial(
        own_answers,
        processor=trainer.processing_class,  # type: ignore[arg-type]  # load_processor's
        encoder=trainer.encoder,
        features=features_of(engine),
    )
    probing = Probing(
        trainer,
        context.probe_rows,
        context.run,
        stage,
        probes,
        engine=engine,
        size=context.probe_size,
        beta=trainer.args.beta if isinstance(trainer, CWDPOTrainer) else None,
        seed=recipe.seed,
        write_greedy=write,
        write_sampled=partial(write, temperature=1.0, seed=recipe.seed),
        interrupted=interrupted,
    )
    if isinstance(trainer, CWDPOTrainer) and trainer.on_policy is not None and trainer.on_policy.curriculum is not None:
        every = probes.every if isinstance(probes.every, int) else 1
        trainer.on_policy.curriculum.follow(lambda: probing.lines, tolerance=probes.tolerance, every=every)
    return probing


def choose_probe_size(recipe: Recipe, stage_rows: Mapping[Stage, Sequence[Row]]) -> ProbeSize:
    """How much probes ask, the same in both stages: what the shorter one pays for, or the recipe's number of rows."""
    asked = 0 if recipe.probes is None else recipe.probes.rows
    if isinstance(asked, int):
        return whole(asked)
    stages = [(rows_trained_on(recipe, stage, len(rows)), stage, len(rows)) for stage, rows in stage_rows.items()]
    trained, stage, count = min(stages)
    size = size_within(trained, measured=count if stage == "stage2" else 0)
    logger.info(
        "probes ask about %d rows, %d of them under other images and %d answered by the model itself: what a tenth of "
        "training on %d rows pays for. Write probes.rows for another number.",
        size.rows,
        size.image_rows,
        size.own_rows,
        trained,
    )
    return size


def rows_trained_on(recipe: Recipe, stage: Stage, num_rows: int) -> int:
    """How many rows a stage trains on, each epoch counted."""
    settings = recipe.trainer | recipe.stages[stage].trainer
    if int(settings.get("max_steps", -1)) > 0:
        in_step = int(settings.get("per_device_train_batch_size", 8)) * int(os.environ.get("WORLD_SIZE", "1"))
        return int(settings["max_steps"]) * in_step * int(settings.get("gradient_accumulation_steps", 1))
    return round(float(settings.get("num_train_epochs", 1)) * num_rows)


def choose_probe_rows(
    recipe: Recipe, rows: Sequence[Row], eval_rows: Sequence[Row] | None, size: ProbeSize
) -> list[Row]:
    """The rows that probes ask about, the same in both stages: of ``data.eval``, else of the training rows."""
    if recipe.probes is None:
        return []
    chosen = choose_rows(eval_rows or rows, size.rows, recipe.seed)
    if not eval_rows:
        logger.warning(
            "probes ask about %d of the training rows, as the recipe has no data.eval: what the model remembers of "
            "them looks like learning. Name held-out rows in data.eval, or write `probes: null`.",
            len(chosen),
        )
    return chosen


def wanted_loggers(trainer: Mapping[str, Any]) -> list[str]:
    """The loggers that ``trainer`` settings name, as transformers names them; TensorBoard where they name none."""
    if "report_to" not in trainer:
        if find_spec(TENSORBOARD) is not None:
            return [TENSORBOARD]
        logger.warning("no TensorBoard files: tensorboard is not installed. Run `pip install tensorboard`.")
        return []
    given = trainer["report_to"]
    names = [str(name) for name in (given if isinstance(given, list | tuple) else [given]) if name is not None]
    if names in ([], ["none"]):
        return []
    installed: list[str] = get_available_reporting_integrations()
    if TENSORBOARD in installed and find_spec(TENSORBOARD) is None:  # tensorboardX, which is not what writes here
        installed.remove(TENSORBOARD)
    installed += ["flyte"] * (find_spec("flytekit") is not None)
    if names == ["all"]:
        return installed
    known = sorted(INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Write none, all or a list of: {', '.join(known)}."
            raise ConfigError(f"trainer.report_to: unknown logger `{name}`. {hint}", setting="report_to")
        if name not in installed:
            raise ConfigError(
                f"trainer.report_to names `{name}`, which is not installed. Run `pip install "
                f"{_INSTALL.get(name, name)}`, or take it out of trainer.report_to.",
                setting="report_to",
            )
    return list(dict.fromkeys(names))


def _save(
    trainer: StageTrainer, run: RunDirectory, stage: Stage, note: Mapping[str, Any], base: Mapping[str, Any] | None
) -> None:
    if trainer.is_deepspeed_enabled and trainer.is_sharded:
        trainer.save_model(str(run.stage(stage)))  # gathers the weights; every rank takes part
    else:
        weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_sharded else None  # the same
        if trainer.is_world_process_zero():
            model: Any = trainer.model
            save_checkpoint(model, trainer.processing_class, run.stage(stage), weights=weights, base=base)  # type: ignore[arg-type]
    if trainer.is_world_process_zero():
        run.mark_finished(stage, {"steps": trainer.state.global_step, "engine": trainer.engine.report, **note})
        write_cards(run)  # PEFT's own says nothing; the end of the run adds what is measured by then
    trainer.accelerator.wait_for_everyone()


def refuse_broken_weights(trainer: StageTrainer, run: RunDirectory, stage: Stage) -> None:
    """Look at every weight that the stage trained, before it is saved as the stage's result."""
    broken = broken_weights(trainer.model)
    if not broken:
        return
    good = next((path for path in whole_checkpoints(run.checkpoints(stage)) if _is_finite(path)), None)
    raise UserError(
        f"{stage} has ruined the model, which is not saved: {len(broken)} of its trained weights are infinite or not "
        f"numbers ({some(broken)}). {_since(trainer)} "
        + (f"The last good checkpoint is {good}. " if good else "There is no good checkpoint of this stage. ")
        + f"Start again with another --output_dir and a lower learning rate (--{stage}.trainer.learning_rate, which "
        f"was {trainer.args.learning_rate:g}); in float16 write --model.dtype bfloat16 as well."
    )


def _since(trainer: StageTrainer) -> str:
    """The first log line of the stage that shows it."""
    for line in trainer.state.log_history:
        for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not math.isfinite(line.get(name, 0.0)):
                return f"The {what} was first not finite at step {line['step']}, as far as the log knows."
    return "The log shows no loss that is not finite, so it happened after its last line."


def _is_finite(checkpoint: Path) -> bool:
    """Whether all weights of a checkpoint are finite; one that cannot be read is not."""
    files = sorted(checkpoint.glob("*.safetensors"))
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                names = file.keys()  # no dictionary: it has keys alone
                if not all(torch.isfinite(file.get_tensor(name)).all() for name in names):
                    return False
    except (OSError, SafetensorError):
        return False
    return bool(files)
