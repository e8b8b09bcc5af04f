"""What can be known before a model is loaded or a file written: whether every stage's settings and rows will do."""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import IntervalStrategy, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cwdpo.config.checking import check_trainer_section
from cwdpo.config.recipe import LoraConfig, Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.check import NOTHING_TO_LEARN, CheckReport, Notice
from cwdpo.data.encode import Encoder
from cwdpo.data.images import peek_image
from cwdpo.data.reading import read_rows, split_rows
from cwdpo.data.repeats import has_two_answers, repeated_between_files, rows_also_in, sharing_ids
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, DataError, UserError, about, path_advice, shortened
from cwdpo.models.adapters import lora_targets, quantization_config
from cwdpo.models.loading import check_weights, load_outline, load_processor
from cwdpo.models.parts import freeze_vision_tower, model_limits, part_sizes
from cwdpo.models.pixels import check_sizes, set_pixel_limits
from cwdpo.negatives.server import Endpoint, EndpointError, RefusalError
from cwdpo.negatives.verify import load_judge
from cwdpo.recipes.memory import ModelFacts, StepPlan
from cwdpo.recipes.publishing import check_hub
from cwdpo.recipes.stages import recipe_processor, stage_arguments
from cwdpo.records import PROBE_GROUPS, ProbeMeasure, RunDirectory, Stage
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer
from cwdpo.trainers.arguments import argument_types
from cwdpo.trainers.step_metrics import check_best_metric

logger = logging.getLogger(__name__)

_OF_A_GPU = re.compile(r"flash_attention_\d|/")  # and kernels of the hub: owner/name
_ROWS_AT_A_TIME = TrainingArguments.per_device_train_batch_size

_REFUSALS = (ValueError, TypeError, ImportError, RuntimeError, OSError, KeyError, NotImplementedError)
"""What transformers raises of settings that it does not like, and of packages that they need."""


def check_settings(recipe: Recipe, run: RunDirectory, *, elsewhere: bool = False) -> None:
    """Build what the ``trainer`` settings of all stages describe, and forget it; nothing is written into ``run``.

    A ConfigError names a setting that is unknown, wrong, or needs a package that is not installed. A run that will be
    ``elsewhere``, on another machine, may need a GPU that this one does not have.
    """
    known = argument_types()
    for section, values in _sections(recipe, recipe.stages).items():
        check_trainer_section(values, known, lambda path: "recipe", path=tuple(section.split(".")))
        engine = values.get("deepspeed")
        if isinstance(engine, str) and engine.endswith(".json") and not Path(engine).is_file():
            name = f"{section}.deepspeed"
            why = f"{name} is {engine!r}, but there is no such file. {path_advice(engine)}"
            raise ConfigError(why, setting=name)
    for stage in recipe.stages:
        try:
            _try(recipe, run, stage, elsewhere=elsewhere)
        except UserError:
            raise
        except _REFUSALS as error:
            raise _explained(recipe, run, stage, error, elsewhere=elsewhere) from error
        finally:
            # models that are loaded later would be divided by it
            unset_hf_deepspeed_config()
    if recipe.stage2 is not None and recipe.negatives is not None and recipe.negatives.judge is not None:
        load_judge(recipe.negatives.judge)


def read_data(recipe: Recipe) -> tuple[list[Row], list[Row] | None]:
    """Training rows of all files, and evaluation rows if the recipe names any."""
    data = recipe.data
    rows = [row for file in data.train_files for row in read_rows(file, image_root=data.image_root)]
    return rows, read_rows(Path(data.eval), image_root=data.image_root) if data.eval else None


def rows_of_stages(recipe: Recipe, rows: Sequence[Row]) -> dict[Stage, list[Row]]:
    """The rows that each stage trains on; a ConfigError where a stage would have none."""
    if len(recipe.stages) == 1:
        return {stage: list(rows) for stage in recipe.stages}
    with about("data.stage1_fraction"):
        first, second = split_rows(rows, recipe.data.stage1_fraction, recipe.seed)
    return {"stage1": first, "stage2": second}


def check_answers(recipe: Recipe, stages: Mapping[Stage, Sequence[Row]], eval_rows: Sequence[Row] | None) -> None:
    """Refuse, with a ConfigError, rows of stage 1 without any gentle negative where its objective needs them; and, with
    a DataError, a row without a rejected answer that stage 2 trains or is evaluated on."""
    stage1 = recipe.stage1
    missing = without_rejected(stages, eval_rows)
    if missing and not any(row.rejected for rows in stages.values() for row in rows):
        has_gentle = any(row.gentle for rows in stages.values() for row in rows)
        is_set = stage1 is not None and (stage1.objective == "plain" or has_gentle)
        alone = "" if is_set else " and stage1: {objective: plain}"
        raise ConfigError(
            f"no row of data.train has a `rejected` answer, which stage 2 needs. Write stage2: null{alone} to "
            "fine-tune on the chosen answers alone, or add `rejected`.",
            setting="stage2",
        )
    if stage1 is not None and stage1.objective != "plain" and not any(row.gentle for row in stages["stage1"]):
        raise ConfigError(
            f"stage1.objective is `{stage1.objective}`, but no row has a `gentle` negative (an answer with one minor "
            f"error). Make them: `{_gentle_command(recipe)}`, and write the new file in data.train; or write "
            "`stage1: {objective: plain}`.",
            setting="stage1.objective",
        )
    best = None if stage1 is None else (recipe.trainer | stage1.trainer).get("metric_for_best_model")
    if str(best).endswith("logps_mean/gentle") and eval_rows and not any(row.gentle for row in eval_rows):
        raise ConfigError(
            f"metric_for_best_model of stage1 is {best}, but no row of data.eval has a `gentle` negative. Add them, or "
            "write logps_mean/chosen.",
            setting=_name(recipe, "stage1", "metric_for_best_model"),
        )
    if missing:
        more = f" (nor have {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0].source}: the row has no `rejected` answer{more}, which stage 2 needs. Add one.")
    # with recipe.negatives the policy's own answers join those of the file
    if recipe.negatives is None and not any(map(has_two_answers, stages.get("stage2", ()))) and "stage2" in stages:
        raise ConfigError(f"data.train: {NOTHING_TO_LEARN}", setting="data.train")


def _gentle_command(recipe: Recipe) -> str:
    """The command that makes gentle negatives for the recipe's first file."""
    first = recipe.data.train_files[0]
    near = Path(os.path.relpath(first)) if first.is_absolute() and first.is_relative_to(Path.cwd()) else first
    return f"cwdpo negatives gentle {near} --out {near.with_name(near.name.split('.')[0] + '_gentle.jsonl')}"


def without_rejected(stages: Mapping[Stage, Sequence[Row]], eval_rows: Sequence[Row] | None) -> list[Row]:
    """Rows that would stop stage 2, of those it trains and is evaluated on."""
    return [row for row in [*stages["stage2"], *(eval_rows or [])] if not row.rejected] if "stage2" in stages else []


def warn_of_equal_answers(stages: Mapping[Stage, Sequence[Row]]) -> None:
    """Log how many pairs hold the same answer twice: in stage 2, which others come to with another seed, they cost time
    and teach nothing."""
    rows = [*stages.get("stage1", []), *stages["stage2"]] if "stage2" in stages else []
    equal = [row for row in rows if row.chosen.strip() in (answer.strip() for answer in row.rejected)]
    if equal:
        logger.warning(
            "%d of %d rows have the same answer as `chosen` and `rejected`, the first at %s: they teach stage 2 "
            "nothing. `cwdpo check` lists them; take them out.",
            len(equal),
            len(rows),
            equal[0].source,
        )


def not_held_out(rows: Iterable[Row], eval_rows: Sequence[Row] | None) -> str:
    """A sentence on the rows of ``data.eval`` that are also trained on; empty where there are none."""
    shared = rows_also_in(eval_rows, rows) if eval_rows else []
    if not shared or not eval_rows:
        return ""
    are = "is" if len(shared) == 1 else "are"
    which = "it is" if len(shared) == 1 else "they are"
    return (
        f"{len(shared)} of {len(eval_rows)} rows of data.eval {are} also in data.train, so {which} not held out; the "
        f"first is {shared[0].source}."
    )


def warn_of_shared_rows(rows: Sequence[Row], eval_rows: Sequence[Row] | None) -> None:
    """Log rows that are both trained on and held out, and rows that share an id and nothing else."""
    held_out = not_held_out(rows, eval_rows)
    if held_out:
        logger.warning("%s", held_out)
    same = list(sharing_ids(rows))
    for row, first in same[:_IDS_NAMED]:
        logger.warning("%s: the id %r is also at %s, with other content.", row.source, shortened(row.id), first.source)
    if len(same) > _IDS_NAMED:
        logger.warning("and %d more rows have the id of an earlier row.", len(same) - _IDS_NAMED)


_IDS_NAMED = 3
"""Rows with an id of another that are named; the others are counted."""


def peek_at_images(rows: Iterable[Row]) -> dict[tuple[int, int], str]:
    """Look at every image's file and header, each file once; a DataError names the first row with a bad one.

    Returns the width and height of all images, each with the source of a row that has one.
    """
    seen: set[Path] = set()
    sizes: dict[tuple[int, int], str] = {}
    for row in rows:
        for image in row.images:
            if not isinstance(image, Path) or image not in seen:
                sizes.setdefault(peek_image(image, source=row.source), row.source)
            if isinstance(image, Path):
                seen.add(image)
    return sizes


def check_model_takes(recipe: Recipe, rows: Sequence[Row], sizes: Mapping[tuple[int, int], str]) -> None:
    """Refuse, with a DataError, a row with a token that the model has no embedding for, or with an image of a size that
    its processor refuses. The rows are looked at only where the tokenizer has such a token at all; ``sizes`` are what
    :func:`peek_at_images` found in them."""
    with about("model.name_or_path"):
        outline = load_outline(
            recipe.model.name_or_path,
            attn_implementation=recipe.model.attn_implementation,
            trust_remote_code=recipe.model.trust_remote_code,
        )
        processor = recipe_processor(recipe)
        encoder = Encoder(processor, limits=model_limits(outline))
    check_loading(recipe)
    check_sizes(processor, sizes)
    if encoder.can_exceed_model:
        for row in rows:
            encoder.check_tokens(row)


def check_loading(recipe: Recipe, *, elsewhere: bool = False) -> None:
    """Refuse, with a UserError, weights that are not whole, and packages that are missing for what the recipe does with
    them, without reading the weights; ``elsewhere`` is another machine, which may have a GPU and such packages."""
    with about("model.name_or_path"):
        check_weights(recipe.model.name_or_path)
    if recipe.model.quantization is not None and not elsewhere:
        with about("model.quantization"):
            quantization_config(**dataclasses.asdict(recipe.model.quantization))


def check_endpoint(recipe: Recipe) -> None:
    """Refuse, with a UserError, a key that the server of ``negatives.endpoint`` does not take, before a model is
    loaded. A server that does not answer is warned of: stage 2, which needs it, may begin hours later."""
    url = None if recipe.stage2 is None or recipe.negatives is None else recipe.negatives.endpoint
    if url is None:
        return
    endpoint = Endpoint(url, timeout=_PATIENCE, deadline=_PATIENCE, retries=0)
    try:
        endpoint.models()
    except RefusalError as error:
        if error.status in (401, 403):
            raise
    except EndpointError as error:
        logger.warning("negatives.endpoint: %s Stage 2 will ask it.", error)


_PATIENCE = 5.0
"""Seconds for a server to answer before training."""


def check_recipe(
    path: Path, check: Callable[[Path, Path | None, Encoder | None], CheckReport], changes: Sequence[str] = ()
) -> tuple[CheckReport, ModelFacts, StepPlan]:
    """One report over all files of a recipe, the facts of its model, and how its steps are laid out.

    What only needs a GPU, and there is none here, is a note and stops nothing: a run may train on another machine.

    ``check`` makes the report of one file, with an image root and an encoder; ``changes`` are settings in the words of
    a command line. A UserError where a setting, or the
    model, cannot be used.
    """
    recipe = read_recipe(path, changes, trainer_fields=argument_types)
    check_settings(recipe, RunDirectory(Path(recipe.output_dir)), elsewhere=True)
    gpu = torch.cuda.is_available()
    lora, attention = recipe.model.lora or LoraConfig(), recipe.model.attn_implementation
    encoder, facts = read_model(
        recipe.model.name_or_path,
        lora.target_modules,
        attn_implementation=attention if gpu or not _OF_A_GPU.search(str(attention)) else None,
        trust_remote_code=recipe.model.trust_remote_code,
        max_length=recipe.data.max_length,
        pixels=(recipe.data.min_pixels, recipe.data.max_pixels),
        rank=lora.r,
    )
    check_loading(recipe, elsewhere=not gpu)
    root = recipe.data.image_root_path
    whole = CheckReport(str(path))
    further = [recipe.data.eval, None if recipe.evaluate is None else recipe.evaluate.data]
    for file in recipe.data.train_files + [Path(name) for name in further if name is not None]:
        report = check(file, root, encoder)
        whole.num_records += report.num_records
        whole.rows += report.rows
        # what stages learn from is known below, exactly
        whole.findings += [finding for finding in report.findings if finding.name != "nothing_to_learn"]
        whole.notes += [note for note in report.notes if note.name != "no_rejected"]  # exact below
    if not any(finding.name != "too_long" for finding in whole.findings):
        findings, notes = _of_stages(recipe, path)
        whole.findings += findings
        whole.notes += notes
    whole.notes += _needs_gpu(recipe, path)
    checks: dict[str, Callable[[Recipe], None]] = {"hub": check_hub, "endpoint": check_endpoint}
    for name, look in checks.items():
        try:
            look(recipe)
        except UserError as problem:
            whole.findings.append(Notice(str(path), name, f"{path}: {problem}"))
    return whole, facts, step_plan(recipe)


def _needs_gpu(recipe: Recipe, path: Path) -> list[Notice]:
    """A note where the recipe trains in a way that only a GPU has, and there is none here."""
    if torch.cuda.is_available():
        return []
    sections = _sections(recipe, recipe.stages).items()
    wanted = [f"{section}.{key}" for section, values in sections for key in ("bf16", "fp16") if values.get(key)]
    if all(_setting(recipe, stage, "use_cpu", False) for stage in recipe.stages):
        wanted = []
    wanted += ["model.quantization"] if recipe.model.quantization is not None else []
    wanted += ["model.attn_implementation"] if _OF_A_GPU.search(str(recipe.model.attn_implementation)) else []
    if not wanted:
        return []
    message = f"{path}: {_without_gpu(wanted, f'cwdpo train {path} ')}"
    return [Notice(str(path), "needs_gpu", message)]


def _without_gpu(settings: Sequence[str], command: str = "") -> str:
    """Why settings that need a GPU cannot be used here, and the words that change them."""
    words = " ".join(f"--{name} {'null' if name.startswith('model.') else 'false'}" for name in settings)
    words += "" if all(name.startswith("model.") for name in settings) else " --model.dtype float32"
    return (
        f"{' and '.join(settings)} {'needs' if len(settings) == 1 else 'need'} a GPU, and there is none here. To train "
        f"on this machine: `{command}{words}`."
    )


def read_model(
    model: str,
    target_modules: str | list[str],
    *,
    trust_remote_code: bool,
    attn_implementation: str | Mapping[Literal["text", "vision"], str] | None = None,
    max_length: int | None = None,
    pixels: tuple[int | None, int | None] = (None, None),
    rank: int = LoraConfig.r,
) -> tuple[Encoder, ModelFacts]:
    """An encoder that knows the model's limit, and what is known of the model without its weights.

    The arguments are the recipe's: of ``model`` its name and settings, ``model.lora.target_modules``,
    ``data.max_length``, ``data.min_pixels`` with ``data.max_pixels``, and ``model.lora.r``. A UserError where the model
    or its processor cannot be used, or LoRA would train no layer.
    """
    with about("model.name_or_path"):
        outline = load_outline(model, attn_implementation=attn_implementation, trust_remote_code=trust_remote_code)
        freeze_vision_tower(outline)
        processor = set_pixel_limits(load_processor(model, trust_remote_code=trust_remote_code), *pixels)
        encoder = Encoder(processor, max_length=max_length, limits=model_limits(outline))
    with about("model.lora.target_modules"):
        targets = lora_targets(outline, target_modules)
    text = outline.config.get_text_config()
    layers = dict(outline.named_modules())
    return encoder, {
        "name_or_path": model,
        "class": type(outline).__name__,
        "dtype": str(outline.config.dtype or torch.float32).removeprefix("torch."),
        "max_length": encoder.limit,
        "parts": {part.part: {"total": part.total, "trainable": part.trainable} for part in part_sizes(outline)},
        "lora": {"r": rank, "targets": targets, "weights": sum(rank * sum(layers[n].weight.shape) for n in targets)},
        "shape": {
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "vocabulary_size": text.vocab_size,
        },
    }


def step_plan(recipe: Recipe) -> StepPlan:
    """How the recipe's stage with the most rows at a time lays out a step."""
    quantization = recipe.model.quantization
    return StepPlan(
        dtype=recipe.model.dtype,
        lora=recipe.model.lora is not None,
        bits=None if quantization is None else quantization.bits,
        rows=max(
            int(_setting(recipe, stage, "per_device_train_batch_size", _ROWS_AT_A_TIME)) for stage in recipe.stages
        ),
        max_tokens=_setting(recipe, list(recipe.stages)[-1], "max_tokens_per_batch", None),
        checkpointing=any(
            _setting(recipe, stage, f"{what}_checkpointing", False)
            for stage in recipe.stages
            for what in ("activation", "gradient")
        ),
    )


def _setting(recipe: Recipe, stage: Stage, key: str, default: Any) -> Any:
    """A stage's setting of the Trainer, its own first."""
    return (recipe.trainer | recipe.stages[stage].trainer).get(key, default)


def _try(recipe: Recipe, run: RunDirectory, stage: Stage, *, elsewhere: bool) -> None:
    """Make of a stage's settings all that needs neither model nor rows."""
    has_eval = recipe.data.eval is not None
    args = stage_arguments(recipe, run, stage, has_eval=has_eval, **({"use_cpu": True} if elsewhere else {}))
    if args.fp16 and not elsewhere and args.use_cpu:  # accelerate passes over it without a word
        name = _name(recipe, stage, "fp16")
        text = f"{name} has no effect with use_cpu, as it needs a GPU. Take it out, or write `bf16: true`."
        raise ConfigError(text, setting=name)
    if args.fp16 and not args.use_cpu and not torch.cuda.is_available():  # transformers refuses bf16 alone
        raise ConfigError(_without_gpu([_name(recipe, stage, "fp16")]), setting=_name(recipe, stage, "fp16"))
    if args.max_steps == 0 or (args.max_steps < 0 and args.num_train_epochs <= 0):
        # what the Trainer does with such settings is another thing each time
        key = "num_train_epochs" if args.max_steps else "max_steps"
        raise ConfigError(
            f"{_name(recipe, stage, key)} is {getattr(args, key):g}, so {stage} would train for no step. Write "
            "`num_train_epochs: 1` or a number of `max_steps`; to skip a stage, leave its section out.",
            setting=_name(recipe, stage, key),
        )
    if args.eval_strategy != "no" and not has_eval:
        strategy = IntervalStrategy(args.eval_strategy)
        raise ConfigError(
            f"{_name(recipe, stage, 'eval_strategy')} is {strategy.value}, but the recipe has no data.eval. "
            "Name held-out rows there, or leave the setting out.",
            setting=_name(recipe, stage, "eval_strategy"),
        )
    if args.save_only_model:
        raise ConfigError(
            f"{_name(recipe, stage, 'save_only_model')} is true, but a run that was interrupted goes on from the state "
            "of its optimizer, which is then not saved. Take it out; `save_total_limit: 1` keeps the space small, and "
            "what a stage leaves has no such state.",
            setting=_name(recipe, stage, "save_only_model"),
        )
    _check_best_metric(recipe, stage, args)
    with contextlib.suppress(ValueError):  # some need the model, which is not there yet
        Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=1,
        num_training_steps=100,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]  # a text became a dict above
    )


def _check_best_metric(recipe: Recipe, stage: Stage, args: SmoothSFTConfig | CWDPOConfig) -> None:
    """A metric that chooses the best model is one that the stage has; of probes, one that the recipe measures."""
    first, second = SmoothSFTTrainer.metrics_of, CWDPOTrainer.metrics_of
    metrics = first(args) if isinstance(args, SmoothSFTConfig) else second(args)
    name, key = str(args.metric_for_best_model).removeprefix("eval_"), _name(recipe, stage, "metric_for_best_model")
    try:
        check_best_metric(args, metrics)
    except ConfigError as error:
        text = str(error).replace("metric_for_best_model", key, 1).replace("this stage", stage)
        alone = " A setting for one stage alone stands in its own section: `stage2: {trainer: {...}}`."
        text += alone if len(recipe.stages) > 1 and key.startswith("trainer.") else ""
        raise ConfigError(text, setting=key) from None
    if name.startswith("probes/") and args.eval_strategy != "no":
        _, measure, *group = name.split("/")
        probes = recipe.probes
        groups = () if probes is None else PROBE_GROUPS if probes.groups == "all" else probes.groups
        if len(group) != 1 or group[0] not in groups or measure not in get_args(ProbeMeasure):
            raise ConfigError(
                f"{key} is {args.metric_for_best_model}, which the recipe's probes do not measure. Write "
                "probes/MEASURE/GROUP, such as probes/delta/chosen, with a group of `probes.groups`.",
                setting=key,
            )


def _explained(recipe: Recipe, run: RunDirectory, stage: Stage, error: Exception, *, elsewhere: bool) -> ConfigError:
    """Name the settings without which a refusal would not be."""
    names: dict[str, str] = {}
    for section, values in _sections(recipe, [stage]).items():
        for key, value in values.items():
            try:
                _try(_without(recipe, section, key), run, stage, elsewhere=elsewhere)
            except (UserError, *_REFUSALS):
                continue
            names[f"{section}.{key}"] = f"{section}.{key}, which is {value!r}"
    first = next(iter(names), None)
    halves = [name for name in names if name.endswith((".bf16", ".fp16"))]
    if halves and not torch.cuda.is_available():
        return ConfigError(_without_gpu(halves), setting=halves[0])
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError) and (package := re.search(r"'([\w-]+)[^']*'", reason)) is not None:
        reason = f"the package {package[1]} is not installed. Run `pip install {package[1]}`"
        which = ", ".join(names.values()) or "its trainer settings"
        return ConfigError(f"{stage} cannot use {which}: {reason}, or take it out.", setting=first)
    if "load_best_model_at_end" in reason and "strategy to match" in reason:
        evaluated = _setting(recipe, stage, "eval_strategy", "no")
        saved = _setting(recipe, stage, "save_strategy", "steps")
        when = evaluated if evaluated != "no" else saved
        name = _name(recipe, stage, "load_best_model_at_end")
        return ConfigError(
            f"{name} chooses among checkpoints that are evaluated, but in {stage} eval_strategy is {evaluated} and "
            f"save_strategy {saved}. Write `eval_strategy: {when}` and `save_strategy: {when}`.",
            setting=name,
        )
    if not names:
        return ConfigError(f"the trainer settings of {stage} are refused: {reason}")
    which = ", or ".join(names.values())
    return ConfigError(f"{stage} cannot use {which}: {reason.rstrip('.')}. Correct it, or take it out.", setting=first)


def _sections(recipe: Recipe, stages: Iterable[Stage]) -> dict[str, Mapping[str, Any]]:
    """The ``trainer`` sections by name: the common one and those of some stages."""
    return {"trainer": recipe.trainer} | {f"{stage}.trainer": recipe.stages[stage].trainer for stage in stages}


def _without(recipe: Recipe, section: str, key: str) -> Recipe:
    """The recipe with one setting of a ``trainer`` section taken out."""
    stage, _, _ = section.rpartition(".")
    owner: Any = getattr(recipe, stage) if stage else recipe
    fewer = dataclasses.replace(owner, trainer={name: value for name, value in owner.trainer.items() if name != key})
    return dataclasses.replace(recipe, **{stage: fewer}) if stage else fewer


def _name(recipe: Recipe, stage: Stage, key: str) -> str:
    """A setting as messages call it: where it is set, the stage's own section first."""
    return f"{stage}.trainer.{key}" if key in recipe.stages[stage].trainer else f"trainer.{key}"


def _of_stages(recipe: Recipe, path: Path) -> tuple[list[Notice], list[Notice]]:
    """What the stages would stop at, of rows that can all be read, and a note where rows are not held out."""
    notes: list[Notice] = []
    try:
        rows, eval_rows = read_data(recipe)
        stages = rows_of_stages(recipe, rows)
        if again := repeated_between_files(rows):
            text = (
                f"{path}: {len(again)} of {len(rows)} rows of data.train are also in an earlier file of it, and count "
                f"twice; the first is {again[0].source}. Name each file once."
            )
            notes.append(Notice(str(path), "repeated", text))
        if held_out := not_held_out(rows, eval_rows):
            notes.append(Notice(str(path), "not_held_out", f"{path}: {held_out}"))
        missing = without_rejected(stages, eval_rows)
        if not missing or not any(row.rejected for row in rows):
            check_answers(recipe, stages, eval_rows)
    except DataError:
        raise
    except UserError as problem:
        return [Notice(str(path), "settings", f"{path}: {problem}")], notes
    advice = "the row has no `rejected` answer, which stage 2 needs. Add one."
    return [Notice(row.source, "missing_answer", f"{row.source}: {advice}") for row in missing], notes
