"""What a run will do, in a few lines before its first step."""

import math
import os
from collections.abc import Iterator
from heapq import nlargest

from cwdpo.config.recipe import LoraConfig, ModelConfig, Stage1Config, Stage2Config
from cwdpo.data.rows import Row
from cwdpo.memory import human_bytes
from cwdpo.recipes.memory import step_memory, this_device
from cwdpo.recipes.preflight import read_model, step_plan
from cwdpo.recipes.publishing import hub_name
from cwdpo.recipes.resuming import is_complete
from cwdpo.recipes.stages import RunContext, stage_arguments
from cwdpo.trainers.arguments import AnswerArguments

_LONG_ROWS = 8
"""Rows with the longest texts, of which the longest in tokens is taken for the longest of all."""


def start_lines(context: RunContext) -> Iterator[str]:
    """Model, rows, each stage's batch, steps and learning rate, memory, and where the result will be."""
    recipe, run = context.recipe, context.run
    yield f"model    {recipe.model.name_or_path}, {_training(recipe.model)}"
    held_out = f", {len(context.eval_rows)} held out" if context.eval_rows else ""
    yield f"rows     {len(context.rows)}{held_out}; probes ask about {len(context.probe_rows) or 'none'}"
    for stage, rows in context.stage_rows.items():
        if run.is_finished(stage) or is_complete(run, recipe):
            yield f"{stage}   finished before"
            continue
        args = stage_arguments(recipe, run, stage, has_eval=bool(context.eval_rows))
        yield f"{stage}   {_objective(recipe.stages[stage])}: {_steps_in_words(len(rows), args)}"
    yield f"memory   {_memory(context)}"
    name = hub_name(recipe)
    upload = f"; at its end to the hub as {name}, with the report and its small pictures" if name is not None else ""
    yield f"output   {run.root}{upload}"


def number_of_steps(rows: int, args: AnswerArguments, *, processes: int = 1) -> int:
    """Steps of the optimiser in a stage, as the Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    whole = rows // processes if args.dataloader_drop_last else math.ceil(rows / processes)
    count = math.floor if args.dataloader_drop_last else math.ceil
    batches = count(whole / args.per_device_train_batch_size)
    steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * steps)


def _steps_in_words(rows: int, args: AnswerArguments) -> str:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    size, times = args.per_device_train_batch_size, args.gradient_accumulation_steps
    each = [f"{size} at a time"] if size > 1 or times > 1 else []
    each += [f"{times} times"] if times > 1 else []
    each += [f"on {processes} processes"] if processes > 1 else []
    of_batch = f" ({', '.join(each)})" if len(each) > 1 else ""
    epochs = "" if args.max_steps > 0 else f"{_counted(args.num_train_epochs, 'epoch')}, "
    steps = _counted(number_of_steps(rows, args, processes=processes), "step")
    batch = _counted(size * times * processes, "row")
    return f"{rows} rows, {steps} of {batch}{of_batch}, {epochs}learning rate {args.learning_rate:g}"


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _objective(settings: Stage1Config | Stage2Config) -> str:
    if isinstance(settings, Stage1Config):
        return "fine-tuning" if settings.objective == "plain" else f"fine-tuning, {settings.objective}"
    loss = settings.loss if isinstance(settings.loss, str) else " + ".join(settings.loss)
    name = "DPO" if loss == "sigmoid" else loss
    return f"{name}, beta {settings.beta:g}{', cooled' if settings.cooling is not None else ''}"


def _training(model: ModelConfig) -> str:
    kind = f"LoRA of rank {model.lora.r}" if model.lora is not None else "all weights"
    bits = f", base in {model.quantization.bits} bits" if model.quantization is not None else ""
    dtype = "" if model.dtype == "auto" else f"{model.dtype}, "
    return f"{dtype}{kind}{bits}"


def _memory(context: RunContext) -> str:
    recipe, model = context.recipe, context.recipe.model
    lora = model.lora or LoraConfig()
    encoder, facts = read_model(
        model.name_or_path,
        lora.target_modules,
        trust_remote_code=model.trust_remote_code,
        max_length=recipe.data.max_length,
        pixels=(recipe.data.min_pixels, recipe.data.max_pixels),
        rank=lora.r,
    )
    longest = 0
    for row in nlargest(_LONG_ROWS, context.rows, key=_characters):
        encoded = encoder.encode(row, [row.chosen, *row.rejected])
        answers = max((len(answer) for answer in encoded.answers), default=0)
        longest = max(longest, encoded.prompt["input_ids"].shape[-1] + answers)
    needed, device = step_memory(facts, step_plan(recipe), longest)["total"], this_device()
    there = f"{device.name} has {human_bytes(device.memory)}{'' if device.is_gpu else ' free'}"
    return f"about {human_bytes(needed)} a step, by arithmetic; {there}"


def _characters(row: Row) -> int:
    prompt = sum([len(part) for turn in row.prompt for part in turn.parts if isinstance(part, str)])
    return prompt + max(map(len, (row.chosen, *row.rejected)))
