"""The probes of a recipe's stages: which rows they ask, and how they watch a trainer."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from cwdpo.config.recipe import Recipe
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.generation import generate_answers
from cwdpo.probes import GROUPS, choose_rows
from cwdpo.records.lines import Stage
from cwdpo.records.run_directory import RunDirectory
from cwdpo.trainers import CWDPOTrainer
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.probe_settings import ProbeSettings
from cwdpo.trainers.probing import Probing

logger = logging.getLogger(__name__)

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
