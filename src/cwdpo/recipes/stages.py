"""One stage of a recipe: its trainer, from settings, rows and a starting model."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from cwdpo.config.recipe import Recipe, Stage1Config, Stage2Config
from cwdpo.data.rows import Row
from cwdpo.engine import Engine, FeatureCache, make_engine
from cwdpo.recipes.loggers import TENSORBOARD, wanted_loggers
from cwdpo.records.files import write_json
from cwdpo.records.lines import Stage
from cwdpo.records.run_directory import RunDirectory
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer
from cwdpo.trainers.tensorboard import TensorBoardRecorder


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
    tell = partial(write_json, run.engine) if int(os.environ.get("RANK", "0")) == 0 else None
    return make_engine(recipe.engine, features=features, tell=tell)


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
