"""One stage of a recipe: its trainer, from settings, rows and a starting model."""

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from cwdpo.config.recipe import ModelConfig, Recipe, Stage1Config, Stage2Config
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, FeatureCache, make_engine
from cwdpo.errors import ConfigError
from cwdpo.generation import generate_answers
from cwdpo.models.adapters import add_lora, load_adapter, quantization_config
from cwdpo.models.loading import load_policy
from cwdpo.probes import GROUPS, choose_rows
from cwdpo.probes.callback import ProbeSettings, Probing
from cwdpo.records import RunDirectory, Stage, write_json
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.callbacks import TensorBoardRecorder

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"

_INSTALL = {
    "azure_ml": "azureml-core",
    "flyte": "flytekit",
    "trackio": "'cwdpo[trackio]'",
    "wandb": "'cwdpo[wandb]'",
}
"""What to install for a logger whose package has another name, or is an extra of ours."""


def wanted_loggers(trainer: Mapping[str, Any]) -> list[str]:
    """The loggers of a stage, by transformers' names; TensorBoard where ``report_to`` is not given.

    Args:
        trainer: the recipe's ``trainer`` settings, under the stage's own.

    Raises:
        ConfigError: one is unknown, or not installed.
    """
    if "report_to" not in trainer:
        if find_spec(TENSORBOARD) is not None:
            return [TENSORBOARD]
        logger.warning("no TensorBoard files: tensorboard is not installed. Run `pip install tensorboard`.")
        return []
    given = trainer["report_to"]
    names = [str(name) for name in (given if isinstance(given, list | tuple) else [given]) if name is not None]
    if names == ["all"]:
        return _installed()
    if names in ([], ["none"]):
        return []
    for name in names:
        _check(name)
    return list(dict.fromkeys(names))


def _check(name: str) -> None:
    known = sorted(INTEGRATION_TO_CALLBACK)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"Write none, all or a list of: {', '.join(known)}."
        raise ConfigError(f"trainer.report_to: unknown logger `{name}`. {hint}")
    if name not in _installed():
        raise ConfigError(
            f"trainer.report_to names `{name}`, which is not installed. Run `pip install {_INSTALL.get(name, name)}`, "
            "or take it out of trainer.report_to."
        )


def _installed() -> list[str]:
    """Loggers that can be used here."""
    found: list[str] = get_available_reporting_integrations()
    if TENSORBOARD in found and find_spec(TENSORBOARD) is None:  # tensorboardX, which is not what writes here
        found.remove(TENSORBOARD)
    return found + ["flyte"] * (find_spec("flytekit") is not None)


def stage1_trainer(
    recipe: Recipe,
    run: RunDirectory,
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    eval_rows: Sequence[Row] | None,
    *,
    engine: Engine | None = None,
) -> SmoothSFTTrainer:
    """The trainer of stage 1."""
    args = stage_arguments(recipe, run, "stage1", has_eval=bool(eval_rows))
    assert isinstance(args, SmoothSFTConfig)
    data = {"train_dataset": list(rows), "eval_dataset": _evaluated(args, eval_rows), "processing_class": processor}
    return SmoothSFTTrainer(model, args, engine=engine, **data)


def stage2_trainer(
    recipe: Recipe,
    run: RunDirectory,
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    eval_rows: Sequence[Row] | None,
    *,
    engine: Engine | None = None,
    also_right: Sequence[Row] = (),
) -> CWDPOTrainer:
    """The trainer of stage 2; every row has a rejected answer.

    A right answer in ``also_right``, such as stage 1's rows, is no on-policy negative.
    """
    args = stage_arguments(recipe, run, "stage2", has_eval=bool(eval_rows))
    assert isinstance(args, CWDPOConfig)
    data = {"train_dataset": list(rows), "eval_dataset": _evaluated(args, eval_rows), "processing_class": processor}
    return CWDPOTrainer(model, args=args, engine=engine, also_right=also_right, **data)


def stage_arguments(
    recipe: Recipe, run: RunDirectory, stage: Stage, *, has_eval: bool, **overrides: Any
) -> SmoothSFTConfig | CWDPOConfig:
    """The training arguments of a stage.

    Args:
        recipe: what is run.
        run: where; nothing is written.
        stage: which; the recipe has it.
        has_eval: whether there are rows to evaluate on.
        overrides: arguments that replace the recipe's.
    """
    settings = recipe.stage1 if stage == "stage1" else recipe.stage2
    assert settings is not None
    shared = _shared(recipe, run, stage, settings, has_eval=has_eval) | overrides
    if isinstance(settings, Stage1Config):
        return SmoothSFTConfig(
            objective=settings.objective,
            penalty=settings.penalty,
            ceiling=settings.ceiling,
            epsilon=settings.epsilon,
            **shared,
        )
    cooling = settings.cooling
    weights = {} if cooling is None else {f"cooling_{name}": value for name, value in asdict(cooling).items()}
    return CWDPOConfig(
        beta=settings.beta,
        cooling=cooling is not None,
        reference=settings.reference,
        reference_dir=str(run.reference),
        on_policy=None if recipe.negatives is None else asdict(recipe.negatives),
        on_policy_dir=str(run.negatives),
        reference_batch_size=settings.reference_batch_size,
        **weights,
        **shared,
    )


def _evaluated(args: TrainingArguments, rows: Sequence[Row] | None) -> Sequence[Row] | None:
    """Rows to evaluate on: none where the recipe wants no evaluation, and has ``data.eval`` for its probes."""
    return None if args.eval_strategy == "no" else rows


def run_engine(recipe: Recipe, run: RunDirectory) -> Engine:
    """The engine of a run. Stages, evaluation and reference share it, with its checks and the features it keeps.

    What it chooses, and why, stands in ``engine.json`` as soon as it is known.
    """
    kept = recipe.features
    features = None
    if kept is not None:
        directory = run.features if kept.disk_mb else None
        features = FeatureCache(memory_mb=kept.memory_mb, directory=directory, disk_mb=kept.disk_mb)
    on_choice = partial(write_json, run.engine) if int(os.environ.get("RANK", "0")) == 0 else None
    return make_engine(recipe.engine, features=features, on_choice=on_choice)


def tensorboard(recipe: Recipe, run: RunDirectory, stage: Stage) -> list[TensorBoardRecorder]:
    """What writes a stage's TensorBoard files, if the recipe wants any."""
    settings = recipe.stage1 if stage == "stage1" else recipe.stage2
    assert settings is not None
    wanted = TENSORBOARD in wanted_loggers(recipe.trainer | settings.trainer)
    return [TensorBoardRecorder(run.tensorboard(stage))] if wanted else []


def watch(trainer: SmoothSFTTrainer | CWDPOTrainer, callbacks: Sequence[TrainerCallback]) -> None:
    """Let our own callbacks report in place of the Trainer's printed dictionaries."""
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)


def _shared(
    recipe: Recipe, run: RunDirectory, stage: Stage, settings: Stage1Config | Stage2Config, *, has_eval: bool
) -> dict[str, Any]:
    """Training arguments: our defaults, under the recipe's ``trainer``, under the stage's own."""
    defaults: dict[str, Any] = {
        "logging_steps": 10,
        "logging_first_step": True,
        "save_total_limit": 2,
        "eval_strategy": "epoch" if has_eval else "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    given = recipe.trainer | settings.trainer
    fixed = {
        "report_to": [name for name in wanted_loggers(given) if name != TENSORBOARD] or "none",  # that one is ours
        "output_dir": str(run.checkpoints(stage)),
        "seed": recipe.seed,
        "engine": recipe.engine,
        "max_length": recipe.data.max_length,
    }
    return defaults | given | fixed


def load_start(config: ModelConfig, checkpoint: Path | None) -> PreTrainedModel | PeftModel:
    """Load the policy as a stage finds it.

    Args:
        config: the recipe's ``model`` section.
        checkpoint: what the stage before left (a full model, or adapters on ``config``'s base); None begins anew.
    """
    lora, quantization = config.lora, config.quantization
    own_weights = checkpoint is not None and lora is None
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "freeze_vision": config.freeze_vision,
        "trust_remote_code": config.trust_remote_code,
        "quantization": None if quantization is None else quantization_config(**asdict(quantization)),
    }
    model = load_policy(str(checkpoint) if own_weights else config.name_or_path, **options)
    if lora is None:
        return model
    if checkpoint is not None:
        return load_adapter(model, checkpoint)
    return add_lora(model, **asdict(lora), freeze_vision=config.freeze_vision)


_BEYOND = 8
"""Tokens that a greedy answer may have more than the longest chosen answer of the probe set."""


def probe_set_rows(recipe: Recipe, rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> list[Row]:
    """The rows that probes ask about, the same in both stages: of ``data.eval``, else of the training rows."""
    if recipe.probes is None:
        return []
    chosen = choose_rows(eval_rows or rows, recipe.probes.rows, recipe.seed)
    if not eval_rows:
        logger.warning(
            "probes ask about %d of the training rows, as the recipe has no data.eval: what the model remembers of "
            "them looks like learning. Name held-out rows in data.eval, or write `probes: null`.",
            len(chosen),
        )
    return chosen


def watch_with_probes(
    recipe: Recipe,
    run: RunDirectory,
    stage: Stage,
    trainer: AnswerTrainer,
    processor: Any,
    rows: Sequence[Row],
    *,
    interrupted: Callable[[], bool],
) -> Probing | None:
    """Let probes watch a stage's trainer, if the recipe wants any.

    Raises:
        ConfigError: the recipe relies on readings that sharded training cannot give.
    """
    probes = recipe.probes
    if probes is None or not rows:
        return None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        if probes.stop_on or probes.keep_best:
            raise ConfigError(
                "probes.stop_on and probes.keep_best need the whole model in each process, which FSDP and DeepSpeed "
                "divide. Take them out, or train without sharding."
            )
        logger.warning("no probes: FSDP and DeepSpeed divide the model. Use `cwdpo probe` on what the stage leaves.")
        return None
    settings = ProbeSettings(
        every=probes.every if isinstance(probes.every, int) else None,
        groups=GROUPS if isinstance(probes.groups, str) else probes.groups,
        stop_on=probes.stop_on,
        patience=probes.patience,
        tolerance=probes.tolerance,
        keep_best=probes.keep_best,
        seed=recipe.seed,
    )
    probing = Probing(
        trainer,
        rows,
        run,
        stage,
        settings,
        write_greedy=partial(write_answers, processor=processor),
        write_sampled=partial(write_answers, processor=processor, temperature=1.0, seed=recipe.seed),
        interrupted=interrupted,
    )
    trainer.add_callback(probing)
    return probing


def let_probes_drive(recipe: Recipe, trainer: CWDPOTrainer, probing: Probing | None) -> None:
    """Give a curriculum that is ``auto`` the stage's readings to follow."""
    curriculum = None if trainer.on_policy is None else trainer.on_policy.curriculum
    probes = recipe.probes
    if curriculum is not None and probes is not None and probing is not None:
        every = probes.every if isinstance(probes.every, int) else 1
        curriculum.follow(lambda: probing.lines, tolerance=probes.tolerance, every=every)


def write_answers(
    model: nn.Module, rows: Sequence[Row], *, processor: Any, temperature: float | None = None, seed: int = 0
) -> list[str]:
    """A model's own answers, cut a few tokens beyond the longest chosen answer: greedy ones without a temperature."""
    longest = max((len(processor.tokenizer(row.chosen)["input_ids"]) for row in rows), default=0)
    return generate_answers(
        model,
        processor,
        rows,
        max_new_tokens=longest + _BEYOND,
        temperature=temperature,
        seed=seed,
        warn_of_cut=False,
    )
