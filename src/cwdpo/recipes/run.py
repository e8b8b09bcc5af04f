"""Run a recipe from start to end, or on from where it was interrupted."""

import gc
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
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
from cwdpo.data.reading import without_collector
from cwdpo.data.rows import Row
from cwdpo.diagnosis import examine, read_recording
from cwdpo.errors import DataError
from cwdpo.evaluation.measuring import Progress
from cwdpo.models.saving import remove_litter
from cwdpo.phases import PhaseClock, phase
from cwdpo.probes.snapshots import StageFiles
from cwdpo.recipes.evaluating import check_evaluation, evaluate_run, is_evaluated
from cwdpo.recipes.preflight import (
    check_answers,
    check_endpoint,
    check_model_takes,
    check_settings,
    peek_at_images,
    read_data,
    rows_of_stages,
    warn_of_equal_answers,
    warn_of_shared_rows,
)
from cwdpo.recipes.publishing import check_hub, hub_name, publish
from cwdpo.recipes.resuming import check_same_rows, is_complete, nothing_to_do, resumed_recipe, with_measured_floor
from cwdpo.recipes.stages import RunContext, choose_probe_rows, choose_probe_size, is_main, run_engine, train_stage
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
    imports: float = 0.0,
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
        imports: seconds that this process took before, which are counted among the run's.

    Raises:
        UserError: the settings, the rows or the model cannot be used, or another process writes this run; nothing was
            overwritten.
        Interrupted: a signal ended the run, after a checkpoint.
    """
    run = RunDirectory(Path(recipe.output_dir))
    wall_time = WallTime(run, writes=is_main(), imports=imports)
    with wall_time.phases.running():
        return _run(recipe, run, wall_time, resume, callbacks, on_start, on_evaluation, reference, encoded)


def _run(
    recipe: Recipe,
    run: RunDirectory,
    wall_time: "WallTime",
    resume: bool,
    callbacks: Sequence[TrainerCallback],
    on_start: Callable[[RunContext], None],
    on_evaluation: Progress,
    reference: Path | None,
    encoded: EncodedMemory | None,
) -> RunDirectory:
    began = time.time()
    check_settings(recipe, run)
    with ExitStack() as stack:
        rows, eval_rows = stack.enter_context(data_of_run(recipe))
        stage_rows = rows_of_stages(recipe, rows)
        check_answers(recipe, stage_rows, eval_rows)
        check_evaluation(recipe)
        if is_main():
            check_hub(recipe)
            check_endpoint(recipe)
            is_new = not run.root.exists()
            run = RunDirectory.open(recipe.output_dir, resume=resume)
            stack.enter_context(run.locked())
            if is_new:
                stack.callback(_remove_if_empty, run.root)
            RunDirectory.open(recipe.output_dir, resume=resume)  # once more: another process may have come between
            # ranks of this run may already write
            remove_litter(run.root, older_than=began - 60 if int(os.environ.get("WORLD_SIZE", "1")) > 1 else math.inf)
            if run.has_begun:
                recipe = resumed_recipe(run, recipe)
                check_same_rows(run, recipe.data, rows, eval_rows)
            warn_of_equal_answers(stage_rows)
            warn_of_shared_rows(rows, eval_rows)
            sizes = peek_at_images([*rows, *(eval_rows or [])])
        recipe = with_measured_floor(run, recipe)
        if nothing_to_do(run, recipe) and is_evaluated(run, recipe):
            return run
        time_of_prompts = prompt_time(run)
        stack.enter_context(prompts_at(time_of_prompts))
        if is_main():
            check_model_takes(recipe, [*rows, *(eval_rows or [])], sizes)
        probe_size = choose_probe_size(recipe, stage_rows)
        context = RunContext(
            recipe=recipe,
            run=run,
            rows=rows,
            stage_rows=stage_rows,
            eval_rows=eval_rows,
            time_of_prompts=time_of_prompts,
            probe_rows=choose_probe_rows(recipe, rows, eval_rows, probe_size),
            probe_size=probe_size,
            engine=run_engine(recipe, run, [*rows, *(eval_rows or [])]),
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
                if is_main():  # not in the stage: a kill may come after it was marked as finished, and before this
                    StageFiles(run.probe_files(stage)).keep_only(set())
        if is_main():
            _finish(context, wall_time, on_evaluation)
        return run


def _remove_if_empty(directory: Path) -> None:
    """Leave no directory behind where a start failed before it wrote anything."""
    with suppress(OSError):
        directory.rmdir()


@contextmanager
def data_of_run(recipe: Recipe) -> Iterator[tuple[list[Row], list[Row] | None]]:
    """A recipe's training and evaluation rows. As long as they are in use, Python's garbage collector leaves them out:
    to look for cycles among a million rows takes it seconds each time, and they have none."""
    gc.collect()  # what is garbage already would otherwise stay until the end
    try:
        with without_collector():
            found = read_data(recipe)
            gc.freeze()
        yield found
    finally:
        gc.unfreeze()


def _finish(context: RunContext, wall_time: "WallTime", on_evaluation: Progress) -> None:
    """What a run leaves beside its models: evaluation, findings, summary, report, cards, and what goes to the hub."""
    recipe, run = context.recipe, context.run
    with phase("evaluation"):
        evaluate_run(run, recipe, on_evaluation)
    with phase("report"):
        write_json(run.summary, _summary(context, wall_time))
        with suppress(DataError):  # nothing was logged
            recording = read_recording(run.root)
            found = examine(recording.readings, beta=recording.beta, notes=recording.notes)
            run.write_findings(found.to_json())
        write_report([run.root], run.report)
    write_json(run.summary, _summary(context, wall_time))  # once more, with the report's own seconds
    if recipe.features is not None and recipe.features.disk_mb == "auto":
        shutil.rmtree(run.features, ignore_errors=True)  # nobody asked for files, and no resume needs them
    write_cards(run, hub_name=hub_name(recipe))
    publish(run, recipe)


def prompt_time(run: RunDirectory) -> datetime:
    """The time that a run's prompts print, where a chat template prints the date: when the run began, in every session
    and on every rank."""
    kept = run.kept("prompts").get("time")
    now = datetime.now().replace(microsecond=0) if kept is None else datetime.fromisoformat(kept)
    time: datetime = broadcast_object_list([now])[0]
    return time


class WallTime(TrainerCallback):
    """A clock that goes on where the run's earlier sessions left it."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        writes: bool = True,
        imports: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up a run's clock; of several processes one writes. Use it in ``contextlib.closing``.

        ``imports`` are seconds of this session before the clock was made.
        """
        self._run, self._writes, self._clock = run, writes, clock
        kept = run.kept("wall_time")
        phases = dict(kept.get("phases", {}))
        self.phases = PhaseClock("checks", earlier=phases, clock=clock)
        """Seconds of all sessions by phase, this one until now."""

        self.phases.add("imports", imports)
        # of a session that kept no phases
        self.phases.add("steps", max(0.0, float(kept.get("seconds", 0.0)) - sum(phases.values())))
        self._kept_at = clock()

    @property
    def seconds(self) -> float:
        """Of all sessions, this one until now."""
        return sum(self.phases.seconds.values())

    def close(self) -> None:
        """Write down what this session took, for a later one; not where no run has begun."""
        if self._writes and self._run.recipe.is_file():
            self._kept_at = self._clock()
            phases = {name: round(seconds, 3) for name, seconds in self.phases.seconds.items()}
            self._run.keep("wall_time", {"seconds": round(sum(phases.values()), 3), "phases": phases})

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Write it down every few seconds, as a killed process says nothing at its end."""
        if self._clock() - self._kept_at >= _BETWEEN_WRITES:
            self.close()


def _summary(context: RunContext, wall_time: WallTime) -> dict[str, Any]:
    seconds = {name: round(value, 2) for name, value in wall_time.phases.seconds.items() if value >= 0.005}
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
        "wall_seconds": round(sum(seconds.values()), 1),
        "seconds": seconds,
        "stages": {stage: {"rows": len(rows), **run.note(stage)} for stage, rows in context.stage_rows.items()},
    }
