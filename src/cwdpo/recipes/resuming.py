"""May this recipe continue that run? Only as the same experiment: what a stage began with holds to its end."""

import dataclasses
import logging
import marshal
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cwdpo.config.recipe import DataConfig, Recipe
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.data.rows import ImageSource, Row
from cwdpo.data.sources import resolve_root
from cwdpo.errors import ConfigError, DataError, UserError
from cwdpo.models.checkpoints import has_checkpoint, last_checkpoint
from cwdpo.records import STAGES, RunDirectory, Stage, write_text

logger = logging.getLogger(__name__)

_OF_THE_RUN = ("model.", "data.", "seed", "probes.rows", "probes.groups")
"""Settings that hold for a whole run."""

_OF_AUTO = ("probes.every", "probes.tolerance")
"""Settings that choose stage 2's negatives where probes drive the curriculum."""

_OF_STAGES: Mapping[Stage, Sequence[str]] = {"stage1": ("stage1",), "stage2": ("stage2", "negatives")}
"""Sections that hold for a stage once it has begun."""

_FREE = ("stage2.reference", "negatives.on_error", "negatives.endpoint")
"""Settings in them that may change: they alter nothing of what is learned, or are what an error makes one fix."""

_FREE_OF_TRAINER = (
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("disable_tqdm", "eval_delay", "eval_on_start", "eval_steps", "eval_strategy", "per_device_eval_batch_size"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "max_tokens_per_batch", "use_cpu"),
    *("on_nonfinite", "project", "push_to_hub", "report_to", "run_name"),
    *("save_only_model", "save_steps", "save_strategy", "save_total_limit"),
)
_FREE_PREFIXES_OF_TRAINER = ("ddp_", "hub_", "log_", "logging_", "trackio_")
"""Trainer settings about logging, saving, evaluation, memory and the machine: they may change within a stage."""


def resumed_recipe(run: RunDirectory, recipe: Recipe) -> Recipe:
    """The recipe that a run goes on with; the run's own file is brought up to date with it.

    What was measured stays: where stage 2's floor is known, it takes the place of the rule that it was measured by.
    Changes of what holds for the run, or for a stage that has begun, are refused.
    """
    recipe = with_measured_floor(run, recipe)
    saved = read_recipe(run.recipe)
    begun = [stage for stage in STAGES if _has_begun(run, stage)]
    _check_stages(run, saved, recipe)
    changes = _changes(saved, recipe)
    for stage in begun:
        # probes that drive the curriculum choose stage 2's negatives
        auto = stage == "stage2" and recipe.negatives is not None and recipe.negatives.curriculum == "auto"
        held = [key for key in changes if _holds(key, stage) or (auto and key in _OF_AUTO)]
        _refuse(run, recipe, {key: changes[key] for key in held}, stage)
    _refuse(run, recipe, {key: texts for key, texts in changes.items() if key.startswith(_OF_THE_RUN)}, None)
    _check_models(run, recipe)
    if is_complete(run, recipe):
        return recipe
    for key, (before, now) in changes.items():
        _notify(run, key, before, now, begun)
    if changes:
        write_text(run.recipe, dump_recipe(recipe))
    return recipe


def is_complete(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether the recipe's last stage is finished, so that nothing is left to train."""
    return run.is_finished(list(recipe.stages)[-1])


def nothing_to_do(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether all is trained, and the summary and the report are written too."""
    return is_complete(run, recipe) and run.summary.is_file() and run.report.is_file()


def record_floor(run: RunDirectory, recipe: Recipe, measured: float) -> None:
    """Write stage 2's measured floor into the run's recipe, so that the run can be repeated with it as a number; how it
    was measured is kept beside it, for the sessions that go on with the run."""
    rule = _floor(recipe)
    if rule is None:
        return
    if run.kept("floor").get("measured") != measured:  # else the rule may already be the number that it gave
        run.keep("floor", {"rule": rule, "measured": measured})
    write_text(run.recipe, dump_recipe(_with_floor(recipe, measured)))


def with_measured_floor(run: RunDirectory, recipe: Recipe) -> Recipe:
    """The recipe with the measured floor, where it has been measured by the recipe's own rule."""
    kept, rule = run.kept("floor"), _floor(recipe)
    return _with_floor(recipe, kept["measured"]) if kept and rule is not None and rule == kept["rule"] else recipe


def _floor(recipe: Recipe) -> float | str | None:
    """Stage 2's floor or the rule for it; None without cooling."""
    return None if recipe.stage2 is None or recipe.stage2.cooling is None else recipe.stage2.cooling.floor


def _with_floor(recipe: Recipe, floor: float) -> Recipe:
    assert recipe.stage2 is not None
    assert recipe.stage2.cooling is not None
    cooling = dataclasses.replace(recipe.stage2.cooling, floor=floor)
    return dataclasses.replace(recipe, stage2=dataclasses.replace(recipe.stage2, cooling=cooling))


class NewIntervals(TrainerCallback):
    """The Trainer logs, saves and evaluates as often as its checkpoint says; a resumed run may have new settings."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        state.compute_steps(args, state.max_steps)


def keep_rows(run: RunDirectory, data: DataConfig, rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> None:
    """Remember what the run's data files hold."""
    run.keep("rows", {"files": _contents(data, rows) + _contents(data, eval_rows or [])})


def check_same_rows(run: RunDirectory, data: DataConfig, rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> None:
    """Compare the rows with those that the run began with: texts, answers, names of images and the order count; what an
    image file holds does not, so that a damaged one can be replaced."""
    before = run.kept("rows").get("files", [])
    if not all("xxh3" in each for each in before) or not before:
        logger.warning("%s does not say which rows it began with, so they are not compared with today's.", run.root)
        return
    for was, now in zip(before, _contents(data, rows) + _contents(data, eval_rows or []), strict=False):
        if was != now:
            count = (
                f"{was['rows']} rows then, {now['rows']} now" if was["rows"] != now["rows"] else "as many, but others"
            )
            raise DataError(
                f"{now['file']}: its rows are not those that the run in {run.root} began with ({count}). They would be "
                "divided between the stages another way, so that stage 2 could see what stage 1 trained on. Put the "
                "file back as it was, or start again with another --output_dir. (An image file may be replaced.)"
            )


def _contents(data: DataConfig, rows: Sequence[Row]) -> list[dict[str, str | int]]:
    """Each data file's name, number of rows and hash, in the order in which they are read."""
    found: list[dict[str, str | int]] = []
    for file, group in groupby(rows, key=lambda row: row.source.rpartition(":")[0]):
        root, count, digest = resolve_root(file, data.image_root).start, 0, xxhash.xxh3_128()
        names: dict[Path, str | list[str | int]] = {}  # of files that many rows share
        for count, row in enumerate(group, start=1):  # noqa: B007  # counted to the end
            images = []
            for image in row.images:
                if not isinstance(image, Path):
                    images.append(_name(image, root))
                    continue
                name = names.get(image)
                if name is None:
                    name = names[image] = _name(image, root)
                images.append(name)
            digest.update(_packed(row, images))
        found.append({"file": file, "rows": count, "xxh3": digest.hexdigest()})
    return found


def _packed(row: Row, images: Sequence[object]) -> bytes:
    """A row as bytes that no other row has: turns, answers, names of images, and what only few rows have.

    ``marshal`` writes so in a third of the time of ``json``. Its version 2, unlike later ones, has no references, so
    that equal values always give equal bytes.
    """
    turns = [
        (turn.role, [p if isinstance(p, str) else None for p in turn.parts], turn.reasoning) for turn in row.prompt
    ]
    answers = (row.chosen, row.rejected, row.gentle, row.longer, row.shorter)
    settings = repr(row.template_kwargs) if row.template_kwargs else None
    packed: Any = (turns, answers, row.kind, images, settings)
    return marshal.dumps(packed, 2)


def _name(image: ImageSource, root: Path | None) -> str | list[str | int]:
    """A file's name; of an image that lies in the data itself, which has none, what is cheap to look at."""
    if isinstance(image, Path):
        return str(image.relative_to(root) if root is not None and image.is_relative_to(root) else image)
    if isinstance(image, Image.Image):
        return [image.mode, *image.size]
    return xxhash.xxh3_128(image if isinstance(image, bytes) else image.read()).hexdigest()


def _has_begun(run: RunDirectory, stage: Stage) -> bool:
    """Whether a stage has steps behind it that a resumed run does not repeat; stage 2 only follows stage 1."""
    has = run.was_finished(stage) or has_checkpoint(run.checkpoints(stage))
    return has or (stage == "stage1" and _has_begun(run, "stage2"))


def _check_stages(run: RunDirectory, saved: Recipe, recipe: Recipe) -> None:
    """The division of the rows depends on which stages there are."""
    before, now = list(saved.stages), list(recipe.stages)
    if before != now:
        raise ConfigError(
            f"{run.recipe}: the run began with {' and '.join(before)}, not {' and '.join(now)}, and its rows were "
            "divided for that. Resume with the same stages, or give another --output_dir (and begin there from a "
            f"model of this run, such as --model.name_or_path {run.stage(before[0])})."
        )


def _check_models(run: RunDirectory, recipe: Recipe) -> None:
    """A finished stage's model may be gone only if nothing starts from it any more."""
    for stage in recipe.stages:
        if is_complete(run, recipe) or not run.was_finished(stage) or run.is_finished(stage):
            continue
        done, checkpoint = run.checkpoints(stage).with_suffix(".done"), last_checkpoint(run.checkpoints(stage))
        again = f"from {checkpoint}" if checkpoint else "from its start, as no checkpoint of it is left"
        if stage == "stage1" and recipe.stage2 is not None:
            raise UserError(
                f"{run.stage(stage)} is gone, and stage2, which is not finished, starts from it. Put the directory "
                f"back; or delete {done} and resume, and stage1 is made again {again}."
            )
        logger.warning("%s is gone and is made again %s", run.stage(stage), again)


def _changes(saved: Recipe, recipe: Recipe) -> dict[str, tuple[str, str]]:
    """Settings that differ, by their full names in alphabetical order: what they were and what they are, as text."""
    before, now = dict(_settings(saved)), dict(_settings(recipe))

    def shown(settings: Mapping[str, object], key: str) -> str:
        return repr(settings[key]) if key in settings else "its default"

    return {
        key: (shown(before, key), shown(now, key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def _settings(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Every setting by its full name; those of the shared ``trainer`` as each stage has them."""
    values = dataclasses.asdict(recipe)
    shared = values.pop("trainer")
    for stage in recipe.stages:
        values[stage]["trainer"] = shared | values[stage]["trainer"]
    del values["output_dir"]
    return _flat(values)


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def _holds(key: str, stage: Stage) -> bool:
    """Whether a setting may not change within a stage."""
    of_trainer = key.removeprefix(f"{stage}.trainer.")
    if of_trainer != key:
        free = of_trainer.split(".")[0] in _FREE_OF_TRAINER or of_trainer.startswith(_FREE_PREFIXES_OF_TRAINER)
        return not free
    return key.startswith(tuple(_OF_STAGES[stage])) and not key.startswith(_FREE)


def _refuse(run: RunDirectory, recipe: Recipe, changes: Mapping[str, tuple[str, str]], stage: Stage | None) -> None:
    """Refuse changes of what holds for a stage, or for the whole run."""
    if not changes:
        return
    key, *others = changes
    before, now = changes[key]
    it = "stage1 of this run" if stage == "stage1" and recipe.stage2 is not None else "this run"
    floor = run.kept("floor")
    measured = f" (measured by `{floor['rule']}`)" if key == "stage2.cooling.floor" and floor else ""
    more = f" (and {len(others)} more: {', '.join(others)})" if others else ""
    waits = stage == "stage1" and ".trainer." in key and not _has_begun(run, "stage2") and recipe.stage2 is not None
    later = f" For stage2 alone write --{key.replace('stage1', 'stage2', 1)}." if waits else ""
    raise ConfigError(
        f"{run.recipe}: {it} began with {key} = {before}{measured} and keeps it; the recipe or the command line now "
        f"says {now}{more}. Resume with the same setting, or give another --output_dir.{later}"
    )


def _notify(run: RunDirectory, key: str, before: str, now: str, begun: Sequence[Stage]) -> None:
    """Log a change that is allowed, where it has an effect."""
    stage = next((stage for stage in STAGES if key.startswith(tuple(_OF_STAGES[stage]))), None)
    if stage is not None and run.is_finished(stage):
        return
    where = "from now on"
    if stage is not None and stage not in begun and _holds(key, stage):
        where = f"in {stage}, which has not begun" + (", and not in stage1, which has" if "stage1" in begun else "")
    logger.warning("%s is %s %s; the run began with %s", key, now, where, before)
