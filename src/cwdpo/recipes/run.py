"""Run a recipe from start to end, or on from where it was interrupted."""

import dataclasses
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from cwdpo import __version__
from cwdpo.config.reading import dump_recipe
from cwdpo.config.recipe import Recipe
from cwdpo.data.rows import Row
from cwdpo.diagnosis import examine, read_recording
from cwdpo.engine import Engine
from cwdpo.errors import UserError
from cwdpo.models.loading import load_processor, some
from cwdpo.models.saving import save_checkpoint
from cwdpo.recipes.preflight import (
    check_answers,
    check_settings,
    peek_at_images,
    read_data,
    rows_of_stages,
    warn_of_equal_answers,
)
from cwdpo.recipes.resuming import (
    NewIntervals,
    check_same_rows,
    is_complete,
    keep_floor,
    keep_rows,
    nothing_to_do,
    resumed_recipe,
    with_measured_floor,
)
from cwdpo.recipes.stages import (
    let_probes_drive,
    load_start,
    probe_set_rows,
    run_engine,
    stage1_trainer,
    stage2_trainer,
    tensorboard,
    watch,
    watch_with_probes,
)
from cwdpo.records import RunDirectory, Stage, read_jsonl, write_json, write_text
from cwdpo.report import write_report
from cwdpo.trainers import CWDPOTrainer, SmoothSFTTrainer
from cwdpo.trainers.base import AnswerTrainer
from cwdpo.trainers.callbacks import MetricsRecorder, StopOnSignal
from cwdpo.trainers.checkpoints import last_checkpoint, whole_checkpoints

_BETWEEN_WRITES = 10.0
"""Seconds; a session that is killed loses no more of its own time than this."""


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

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write it down every few seconds, as a killed process says nothing at its end."""
        if self._clock() - self._kept_at >= _BETWEEN_WRITES:
            self.close()


def refuse_broken_weights(trainer: AnswerTrainer, run: RunDirectory, stage: Stage) -> None:
    """Look at every weight that the stage trained, before it is saved as the stage's result.

    Raises:
        UserError: some are infinite or no number; the message says since when, what is still good, and what to change.
    """
    assert trainer.model is not None
    broken = sorted({name for names in gather_object([_broken(trainer.model)]) for name in names})
    if not broken:
        return
    good = next((path for path in whole_checkpoints(run.checkpoints(stage)) if _is_finite(path)), None)
    raise UserError(
        f"{stage} has ruined the model, which is not saved: {len(broken)} of its trained weights are infinite or no "
        f"number ({some(broken)}). {_since(trainer)} "
        + (f"The last good checkpoint is {good}. " if good else "There is no good checkpoint of this stage. ")
        + f"Begin anew with another --output_dir and a lower learning rate (--{stage}.trainer.learning_rate, which was "
        f"{trainer.args.learning_rate:g}); in float16 write --model.dtype bfloat16 as well."
    )


def _broken(model: nn.Module) -> list[str]:
    """Names of trained weights, as far as this process has them, that are not finite everywhere."""
    trained = ((name, _here(weight)) for name, weight in model.named_parameters() if weight.requires_grad)
    return [name for name, weight in trained if not torch.isfinite(weight).all()]


def _here(weight: Tensor) -> Tensor:
    """This process's part of a weight that is divided among several."""
    local = getattr(weight, "to_local", None)
    return (local() if local is not None else weight).detach()


def _since(trainer: AnswerTrainer) -> str:
    """The first log line of the stage that shows it."""
    for line in trainer.state.log_history:
        for name, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            if not math.isfinite(line.get(name, 0.0)):
                return f"The {what} was first not finite at step {line['step']}, as far as the log knows."
    return "The log shows no loss that is not finite, so it happened after its last line."


def _is_finite(checkpoint: Path) -> bool:
    try:
        return all(torch.isfinite(weight).all() for weight in _saved(checkpoint))
    except (OSError, SafetensorError):
        return False


def _saved(checkpoint: Path) -> Iterator[Tensor]:
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise OSError(f"{checkpoint} has no weights that can be looked at")
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # no dictionary: it has keys alone
                yield file.get_tensor(name)


class Interrupted(KeyboardInterrupt):
    """The user ended the run; the message says where it can go on from."""


def run_recipe(recipe: Recipe, *, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> RunDirectory:
    """Train the stages of a recipe and leave a run directory.

    Stage 2 starts from the model that stage 1 saved, and has it as its reference.

    Args:
        recipe: what to do.
        resume: continue the run in ``recipe.output_dir``; stages that are finished are not repeated.
        callbacks: told of every stage's progress.

    Raises:
        UserError: the settings, the rows or the model cannot be used; nothing was overwritten.
        Interrupted: a signal ended the run, after a checkpoint.
    """
    is_main = int(os.environ.get("RANK", "0")) == 0
    run = RunDirectory(Path(recipe.output_dir))
    wall_time = WallTime(run, writes=is_main)
    check_settings(recipe, run)
    rows, eval_rows = read_data(recipe)
    stages = rows_of_stages(recipe, rows)
    check_answers(recipe, stages, eval_rows)
    if is_main:
        run = RunDirectory.open(recipe.output_dir, resume=resume)
        if run.has_begun:
            recipe = resumed_recipe(run, recipe)
            check_same_rows(run, recipe.data, rows, eval_rows)
        warn_of_equal_answers(stages)
        peek_at_images([*rows, *(eval_rows or [])])
    recipe = with_measured_floor(run, recipe)
    if nothing_to_do(run, recipe):
        return run
    probed = probe_set_rows(recipe, rows, eval_rows)
    engine = run_engine(recipe, run)
    start: Path | None = None
    with closing(wall_time):
        for stage, stage_rows in stages.items():
            if not run.is_finished(stage) and not is_complete(run, recipe):
                stage_data = _Rows(stage_rows, eval_rows, probed, stages.get("stage1", ()), rows)
                _run_stage(recipe, run, stage, start, stage_data, [*callbacks, wall_time], engine)
            start = run.stage(stage)
    if is_main:
        write_json(run.summary, _summary(recipe, run, stages, wall_time.seconds))
        _write_findings(run)
        write_report([run.root], run.report)
    return run


class _Rows(NamedTuple):
    """What a stage reads."""

    train: Sequence[Row]
    eval: Sequence[Row] | None
    probed: Sequence[Row]
    first: Sequence[Row]
    """Stage 1's: what is right there is no negative in stage 2."""

    all: Sequence[Row]
    """Of all training files, before they were divided."""


def _run_stage(
    recipe: Recipe,
    run: RunDirectory,
    stage: Stage,
    start: Path | None,
    rows: _Rows,
    callbacks: Sequence[TrainerCallback],
    engine: Engine,
) -> None:
    """Train one stage and save its model."""
    set_seed(recipe.seed)  # new adapters begin at random values
    model = load_start(recipe.model, start)
    processor = load_processor(start or recipe.model.name_or_path, trust_remote_code=recipe.model.trust_remote_code)
    make = stage1_trainer if stage == "stage1" else functools.partial(stage2_trainer, also_right=rows.first)
    trainer: Any = make(recipe, run, model, processor, rows.train, rows.eval, engine=engine)
    if trainer.is_world_process_zero() and not run.has_begun:
        # not before: a start that failed leaves nothing to be in the way
        write_text(run.recipe, dump_recipe(recipe))
        keep_rows(run, recipe.data, rows.all, rows.eval)
    signals, boards = StopOnSignal(), tensorboard(recipe, run, stage)
    recorder = MetricsRecorder(run, stage, histograms=lambda: trainer.histograms)
    watch(trainer, [NewIntervals(), recorder, *boards, signals, *callbacks])
    probing = watch_with_probes(
        recipe, run, stage, trainer, processor, rows.probed, interrupted=lambda: signals.received is not None
    )
    if isinstance(trainer, CWDPOTrainer):
        let_probes_drive(recipe, trainer, probing)
        trainer.measure_reference()
        _record_floor(recipe, run, trainer)
    try:
        trainer.train(resume_from_checkpoint=_checkpoint(run, stage))
    finally:
        signals.release()
        for board in boards:
            board.close()
    if signals.received:
        raise Interrupted(
            f"{stage} stopped at step {trainer.state.global_step}; its checkpoint is in {run.checkpoints(stage)}."
        )
    note = probing.finish() if probing is not None else {}
    if isinstance(trainer, CWDPOTrainer) and trainer.on_policy is not None:
        note["negatives"] = trainer.on_policy.note()
    refuse_broken_weights(trainer, run, stage)
    _save(trainer, processor, run, stage, note)
    if probing is not None:
        probing.clean_up()


def _checkpoint(run: RunDirectory, stage: Stage) -> str | None:
    """The stage's newest whole checkpoint; a new run has none."""
    found = last_checkpoint(run.checkpoints(stage))
    return str(found) if found else None


def _record_floor(recipe: Recipe, run: RunDirectory, trainer: CWDPOTrainer) -> None:
    """Write the measured floor into the run's recipe, so that the run can be repeated with it as a number."""
    stage2 = recipe.stage2
    if trainer.floor is None or stage2 is None or stage2.cooling is None or not trainer.is_world_process_zero():
        return
    keep_floor(run, stage2.cooling.floor, trainer.floor)
    cooling = dataclasses.replace(stage2.cooling, floor=trainer.floor)
    resolved = dataclasses.replace(recipe, stage2=dataclasses.replace(stage2, cooling=cooling))
    write_text(run.recipe, dump_recipe(resolved))


def _save(
    trainer: SmoothSFTTrainer | CWDPOTrainer, processor: Any, run: RunDirectory, stage: Stage, note: dict[str, Any]
) -> None:
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(run.stage(stage)))  # gathers the shards; every rank takes part
    elif trainer.is_world_process_zero():
        save_checkpoint(trainer.model, processor, run.stage(stage))  # type: ignore[arg-type]
    if trainer.is_world_process_zero():
        run.mark_finished(stage, {"steps": trainer.state.global_step, "engine": trainer.engine.report, **note})
    trainer.accelerator.wait_for_everyone()


def _write_findings(run: RunDirectory) -> None:
    """Diagnose the run and say what ended its stages early."""
    if read_jsonl(run.metrics).objects or read_jsonl(run.probes).objects:
        recording = read_recording(run.root)
        run.write_findings(examine(recording.readings, beta=recording.beta, notes=recording.notes).to_json())


def _summary(recipe: Recipe, run: RunDirectory, stages: dict[Stage, list[Row]], seconds: float) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return {
        "title": Path(recipe.output_dir).name,
        "model": recipe.model.name_or_path,
        "seed": recipe.seed,
        "hardware": f"{device}, {platform.machine()}",
        "cwdpo_version": __version__,
        "wall_seconds": round(seconds, 1),
        "stages": {stage: {"rows": len(rows), **run.note(stage)} for stage, rows in stages.items()},
    }
