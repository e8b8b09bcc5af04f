"""Run a recipe from start to end, or on from where it was interrupted."""

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState

from cwdpo import __version__
from cwdpo.config.recipe import Recipe
from cwdpo.data.chat_template import prompts_at
from cwdpo.data.encode import EncodedMemory
from cwdpo.diagnosis import examine, read_recording
from cwdpo.errors import DataError
from cwdpo.evaluation.measuring import Progress
from cwdpo.recipes.evaluating import check_evaluation, evaluate_run, is_evaluated
from cwdpo.recipes.preflight import (
    check_answers,
    check_settings,
    check_tokens,
    peek_at_images,
    read_data,
    rows_of_stages,
    warn_of_equal_answers,
)
from cwdpo.recipes.publishing import check_hub, hub_name, publish
from cwdpo.recipes.resuming import check_same_rows, is_complete, nothing_to_do, resumed_recipe, with_measured_floor
from cwdpo.recipes.stages import RunContext, choose_probe_rows, is_main, run_engine, train_stage
from cwdpo.records import RunDirectory, write_json
from cwdpo.report import write_report
from cwdpo.report.card import write_cards

_BETWEEN_WRITES = 10.0
"""Seconds; a session that is killed loses no more of its own time than this."""


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    on_start: Callable[[RunContext], None] = lambda context: None,
    on_evaluation: Progress = lambda what, done, total: None,
    reference: Path | None = None,
    encoded: EncodedMemory | None = None,
) -> RunDirectory:
    """Train the stages of a recipe, evaluate its model if it asks for that, and leave a run directory.

    Stage 2 starts from the model that stage 1 saved, and has it as its reference.

    Args:
        resume: continue the run in ``recipe.output_dir``; stages that are finished are not repeated.
        callbacks: take part in every stage.
        reference: where the reference's log-probs are kept; runs on the same rows from one model may share them.
        encoded: rows that other runs have encoded with the same processor.
        on_start: called on the first rank before the first stage, with what is known of the run.
        on_evaluation: called as the evaluation at the end goes on.

    Raises:
        UserError: the settings, the rows or the model cannot be used, or another process writes this run; nothing was
            overwritten.
        Interrupted: a signal ended the run, after a checkpoint.
    """
    run = RunDirectory(Path(recipe.output_dir))
    wall_time = WallTime(run, writes=is_main())
    check_settings(recipe, run)
    rows, eval_rows = read_data(recipe)
    stage_rows = rows_of_stages(recipe, rows)
    check_answers(recipe, stage_rows, eval_rows)
    check_evaluation(recipe)
    if is_main():
        check_hub(recipe)
    with ExitStack() as stack:
        if is_main():
            run = RunDirectory.open(recipe.output_dir, resume=resume)
            stack.enter_context(run.locked())
            if run.has_begun:
                recipe = resumed_recipe(run, recipe)
                check_same_rows(run, recipe.data, rows, eval_rows)
            warn_of_equal_answers(stage_rows)
            peek_at_images([*rows, *(eval_rows or [])])
        recipe = with_measured_floor(run, recipe)
        if nothing_to_do(run, recipe) and is_evaluated(run, recipe):
            return run
        time_of_prompts = prompt_time(run)
        stack.enter_context(prompts_at(time_of_prompts))
        if is_main():
            check_tokens(recipe.model, [*rows, *(eval_rows or [])])
        context = RunContext(
            recipe=recipe,
            run=run,
            rows=rows,
            stage_rows=stage_rows,
            eval_rows=eval_rows,
            time_of_prompts=time_of_prompts,
            probe_rows=choose_probe_rows(recipe, rows, eval_rows),
            engine=run_engine(recipe, run),
            callbacks=[*callbacks, wall_time],
            reference=reference or run.reference,
            encoded=encoded or EncodedMemory(),
        )
        if is_main():
            on_start(context)
        with closing(wall_time):
            for stage in recipe.stages:
                if not run.is_finished(stage) and not is_complete(run, recipe):
                    train_stage(context, stage)
        if is_main():
            evaluate_run(run, recipe, on_evaluation)
            write_json(run.summary, _summary(context, wall_time.seconds))
            with suppress(DataError):  # nothing was logged
                recording = read_recording(run.root)
                run.write_findings(examine(recording.readings, beta=recording.beta, notes=recording.notes).to_json())
            write_report([run.root], run.report)
            write_cards(run, hub_name=hub_name(recipe))
            publish(run, recipe)
        return run


def prompt_time(run: RunDirectory) -> datetime:
    """The time that a run's prompts print, where a chat template prints the date: when the run began, in every session
    and on every rank."""
    kept = run.kept("prompts").get("time")
    now = datetime.now().replace(microsecond=0) if kept is None else datetime.fromisoformat(kept)
    time: datetime = broadcast_object_list([now])[0]
    return time


class WallTime(TrainerCallback):
    """A clock that goes on where the run's earlier sessions left it."""

    def __init__(self, run: RunDirectory, *, writes: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Take up a run's clock; of several processes one writes. Use it in ``contextlib.closing``."""
        self._run, self._writes, self._clock = run, writes, clock
        self._earlier = float(run.kept("wall_time").get("seconds", 0.0))
        self._began = self._kept_at = clock()

    @property
    def seconds(self) -> float:
        """Of all sessions, this one until now."""
        return self._earlier + self._clock() - self._began

    def close(self) -> None:
        """Write down what this session took, for a later one; not where no run has begun."""
        if self._writes and self._run.recipe.is_file():
            self._kept_at = self._clock()
            self._run.keep("wall_time", {"seconds": round(self.seconds, 3)})

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Write it down every few seconds, as a killed process says nothing at its end."""
        if self._clock() - self._kept_at >= _BETWEEN_WRITES:
            self.close()


def _summary(context: RunContext, seconds: float) -> dict[str, Any]:
    threads = torch.get_num_threads()
    cpu = f"{threads} CPU thread{'' if threads == 1 else 's'}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    recipe, run = context.recipe, context.run
    return {
        "title": Path(recipe.output_dir).name,
        "model": recipe.model.name_or_path,
        "seed": recipe.seed,
        "hardware": f"{device}, {platform.machine()}",
        "cwdpo_version": __version__,
        "wall_seconds": round(seconds, 1),
        "stages": {stage: {"rows": len(rows), **run.note(stage)} for stage, rows in context.stage_rows.items()},
    }
