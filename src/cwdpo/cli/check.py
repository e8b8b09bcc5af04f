"""``cwdpo check``: what would stop training, before it begins."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.config.reading import read_recipe
from cwdpo.config.recipe import LoraConfig, Recipe
from cwdpo.data.check import CheckReport, Notice, memory_estimate
from cwdpo.data.encode import Encoder
from cwdpo.errors import ConfigError, DataError, UserError
from cwdpo.models.adapters import lora_targets
from cwdpo.models.loading import load_outline, load_processor
from cwdpo.models.parts import freeze_vision_tower, part_sizes
from cwdpo.recipes.preflight import (
    check_answers,
    check_settings,
    read_data,
    rows_of_stages,
    train_files,
    without_rejected,
)
from cwdpo.records import RunDirectory
from cwdpo.trainers.arguments import argument_types

if TYPE_CHECKING:
    from cwdpo.data.check import CheckReport, Notice, RowReport
    from cwdpo.data.encode import Encoder


_SHOWN = 10
_UNITS = ("B", "kB", "MB", "GB", "TB")


def show(report: "CheckReport", facts: Mapping[str, Any] | None, console: Console) -> None:
    """Print totals, token budgets, what a model would train, and the first of the problems.

    Args:
        report: what was found in the rows.
        facts: from :mod:`cwdpo.cli.check`, with its ``memory``; None if no model was given.
        console: where to.
    """
    console.print(_totals(report))
    if facts is not None:
        console.print(_tokens(report, facts))
        console.print(_model_table(facts))
    _list(report.notes, "note", console)
    _list(report.findings, "STOPS TRAINING", console)
    if report.ok:
        console.print("Nothing stops training.", style="green")
    else:
        count = len(report.findings)
        console.print(f"{count} {'thing stops' if count == 1 else 'things stop'} training.", style="red")


def human_bytes(number: float) -> str:
    """A size for people.

    Example:
        >>> human_bytes(1_500_000), human_bytes(12)
        ('1.5 MB', '12 B')
    """
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"


def _totals(report: "CheckReport") -> Table:
    summary = report.summary()
    table = _plain_table(report.path)
    table.add_row("rows", f"{summary['rows']} usable of {summary['records']}")
    table.add_row("formats", ", ".join(f"{name}: {count}" for name, count in summary["formats"].items()) or "none")
    table.add_row("images", f"{summary['images']} in {summary['with_images']} rows")
    table.add_row("with rejected answers", str(summary["with_rejected"]))
    table.add_row("with a gentle negative", str(summary["with_gentle"]))
    return table


def _tokens(report: "CheckReport", facts: Mapping[str, Any]) -> Table:
    limit = facts["max_length"]
    table = Table(
        "tokens", "mean", "largest", "in", title=f"token budget, limit {limit or 'none'}", title_justify="left"
    )
    columns: dict[str, Callable[[RowReport], int | None]] = {
        "prompt text": lambda row: row.text_tokens,
        "prompt images": lambda row: row.image_tokens,
        "chosen": lambda row: row.chosen_tokens,
        "rejected, longest": lambda row: max(row.rejected_tokens or [], default=None),
        "gentle": lambda row: row.gentle_tokens,
        "prompt and answer": lambda row: row.longest,
    }
    for name, count in columns.items():
        counted = [(tokens, row.source) for row in report.rows if (tokens := count(row)) is not None]
        if counted:
            largest, source = max(counted, key=lambda item: item[0])
            mean = sum(tokens for tokens, _ in counted) / len(counted)
            table.add_row(name, f"{mean:.1f}", str(largest), Text(source))
    return table


def _model_table(facts: Mapping[str, Any]) -> Table:
    table = _plain_table(f"{facts['name_or_path']} ({facts['class']}, {facts['dtype']})")
    for name, part in facts["parts"].items():
        trained = "trained" if part["trainable"] else "frozen"
        table.add_row(name, f"{part['total']:,} weights, {trained} in full finetuning")
    lora = facts["lora"]
    table.add_row(
        f"LoRA, r {lora['r']}",
        f"{lora['weights']:,} weights in {len(lora['targets'])} layers: {_by_kind(lora['targets'])}",
    )
    for name, word in (("lora", "LoRA"), ("full", "full finetuning")):
        sizes = facts["memory"][name]
        parts = ", ".join(f"{key} {human_bytes(value)}" for key, value in sizes.items() if key != "total")
        table.add_row(f"memory, {word}", f"about {human_bytes(sizes['total'])} ({parts})")
    table.caption = "Memory is for one pair of the longest row, with gradient checkpointing; right to a factor of 1.5."
    table.caption_justify = "left"
    return table


def _by_kind(targets: Sequence[str]) -> str:
    """``28 x q_proj, 28 x k_proj``: the last part of each name tells the kind of layer."""
    return ", ".join(
        f"{count} x {kind}" for kind, count in Counter(name.rsplit(".", 1)[-1] for name in targets).items()
    )


def _list(notices: Sequence["Notice"], title: str, console: Console) -> None:
    for notice in notices[:_SHOWN]:
        console.print(Text(f"{title}: {notice.message}"), soft_wrap=True)
    if len(notices) > _SHOWN:
        names = ", ".join(
            f"{count} {name}" for name, count in Counter(notice.name for notice in notices[_SHOWN:]).items()
        )
        console.print(Text(f"{title}: and {len(notices) - _SHOWN} more ({names}). --json lists all."), soft_wrap=True)


def _plain_table(title: str) -> Table:
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table


def check(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A file or directory of rows, or a recipe.", show_default=False)
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Count its tokens, and tell what LoRA would hit.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option("--image-root", help="Where relative image paths start.  [default: DATA's directory]")
    ] = None,
    target_modules: Annotated[str, typer.Option("--target-modules", help="As model.lora.target_modules.")] = "language",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="As data.max_length.  [default: the model's own limit]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Read every row, open its images, count its tokens. Exits with 1 if something would stop training.

    With a recipe (.yaml): its settings, all its files, and whether each stage's rows have what the stage needs.

    Needs no GPU, and loads no weights.
    """
    if data.suffix.lower() in (".yaml", ".yml"):
        given = {"--model": model, "--image-root": image_root, "--max-length": max_length}
        _refuse(data, [name for name, value in given.items() if value is not None])
        quiet_libraries()

        report, facts = check_recipe(data, checked)
        _tell(report, facts, as_json)
    else:
        _tell(*_check_data(data, model, image_root, target_modules, trust_remote_code, max_length), as_json)


def _tell(report: "CheckReport", facts: dict[str, Any] | None, as_json: bool) -> None:
    """Print the report; exit with 1 if something would stop training."""
    if facts is not None:
        facts["memory"] = memory_of(facts, max((row.longest or 0 for row in report.rows), default=0))
    if as_json:
        print(json.dumps(report.to_json() | {"model": facts}, ensure_ascii=False))
    else:
        show(report, facts, Console())
    if not report.ok:
        raise typer.Exit(1)


def _refuse(recipe: Path, options: list[str]) -> None:
    if options:
        raise ConfigError(f"{options[0]} has no effect beside {recipe}, which says it itself. Leave it out.")


def _check_data(
    data: Path,
    model: str | None,
    image_root: Path | None,
    target_modules: str,
    trust_remote_code: bool,
    max_length: int | None,
) -> tuple["CheckReport", dict[str, Any] | None]:
    """The report of one file of rows, and what is known of the model."""
    encoder: Encoder | None = None
    facts: dict[str, Any] | None = None
    if model is None and max_length is not None:
        raise ConfigError("--max-length counts the tokens of a model. Add --model.")
    if model is not None:
        quiet_libraries()

        encoder, facts = encoder_and_facts(
            model, target_modules, trust_remote_code=trust_remote_code, max_length=max_length
        )
    report = checked(data, image_root, encoder)
    if report.num_records == 0 and report.findings:
        raise DataError(report.findings[0].message)
    return report, facts


def checked(data: Path, image_root: Path | None, encoder: "Encoder | None") -> "CheckReport":
    """The report of one file, with a counter on the terminal while it is made."""
    from cwdpo.data.check import check_rows

    columns = (SpinnerColumn(), TextColumn("{task.completed} rows checked"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("check", total=None)
        return check_rows(
            data,
            image_root=image_root,
            encoder=encoder,
            on_row=lambda count: progress.update(task, completed=count),
        )


def encoder_and_facts(
    model: str,
    target_modules: str | list[str],
    *,
    trust_remote_code: bool,
    max_length: int | None = None,
    rank: int | None = None,
) -> tuple[Encoder, dict[str, Any]]:
    """An encoder that knows the model's limit, and the facts that need no rows.

    Args:
        model: a local directory or a hub name.
        target_modules: as ``model.lora.target_modules``.
        trust_remote_code: run Python code that comes with the model.
        max_length: as ``data.max_length``; None for the model's own limit.
        rank: as ``model.lora.r``; None for its default.

    Raises:
        UserError: the model or its processor cannot be used, or LoRA would hit nothing.
    """
    outline = load_outline(model, trust_remote_code=trust_remote_code)
    freeze_vision_tower(outline)
    text = outline.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    processor = load_processor(model, trust_remote_code=trust_remote_code)
    encoder = Encoder(processor, max_length=max_length, model_max_length=limit)
    return encoder, {
        "name_or_path": model,
        "class": type(outline).__name__,
        "dtype": str(outline.config.dtype or torch.float32).removeprefix("torch."),
        "max_length": encoder.limit,
        "parts": {part.part: {"total": part.total, "trainable": part.trainable} for part in part_sizes(outline)},
        "lora": _lora(outline, target_modules, LoraConfig().r if rank is None else rank),
        "shape": {
            "hidden_size": text.hidden_size,
            "num_layers": text.num_hidden_layers,
            "vocabulary_size": text.vocab_size,
        },
    }


def _lora(outline: Any, target_modules: str | list[str], rank: int) -> dict[str, Any]:
    """Which layers adapters go into, and how many weights they add."""
    targets = lora_targets(outline, target_modules)
    layers = dict(outline.named_modules())
    return {
        "r": rank,
        "targets": targets,
        "weights": sum(rank * sum(layers[name].weight.shape) for name in targets),
    }


def memory_of(facts: dict[str, Any], longest: int) -> dict[str, dict[str, int]]:
    """Bytes that one pair of the longest row takes in stage 2, with gradient checkpointing, for LoRA and in full.

    Args:
        facts: from :func:`encoder_and_facts`.
        longest: tokens of the longest prompt with its answer.
    """
    num_parameters = sum(part["total"] for part in facts["parts"].values())
    trained = {
        "lora": (num_parameters + facts["lora"]["weights"], facts["lora"]["weights"]),
        "full": (num_parameters, sum(part["trainable"] for part in facts["parts"].values())),
    }
    result = {}
    for name, (total, trainable) in trained.items():
        result[name] = memory_estimate(
            num_parameters=total,
            trainable_parameters=trainable,
            bytes_per_value=getattr(torch, facts["dtype"]).itemsize,
            tokens_per_batch=2 * longest,
            checkpointing=True,
            **facts["shape"],
        )
    return result


def check_recipe(
    path: Path, check: Callable[[Path, Path | None, Encoder | None], CheckReport]
) -> tuple[CheckReport, dict[str, Any]]:
    """Check all that a recipe names, without its weights. Whether this machine has a GPU does not matter.

    Args:
        path: the recipe.
        check: makes the report of one file, with an image root and an encoder.

    Returns:
        One report over all files, and the facts of the model.

    Raises:
        UserError: a setting, or the model, cannot be used.
    """
    recipe = read_recipe(path, trainer_fields=argument_types)
    check_settings(recipe, RunDirectory(Path(recipe.output_dir)), elsewhere=True)
    encoder, facts = _model_of(recipe)
    root = Path(recipe.data.image_root) if recipe.data.image_root is not None else None
    files = train_files(recipe) + ([Path(recipe.data.eval)] if recipe.data.eval is not None else [])
    whole = CheckReport(str(path))
    for file in files:
        report = check(file, root, encoder)
        whole.num_records += report.num_records
        whole.rows += report.rows
        whole.findings += report.findings
        whole.notes += [note for note in report.notes if note.name != "no_rejected"]  # told exactly below
    if not any(finding.name != "too_long" for finding in whole.findings):
        whole.findings += _missing_answers(recipe, path)
    return whole, facts


def _model_of(recipe: Recipe) -> tuple[Encoder, dict[str, Any]]:
    lora = recipe.model.lora or LoraConfig()
    return encoder_and_facts(
        recipe.model.name_or_path,
        lora.target_modules,
        trust_remote_code=recipe.model.trust_remote_code,
        max_length=recipe.data.max_length,
        rank=lora.r,
    )


def _missing_answers(recipe: Recipe, path: Path) -> list[Notice]:
    """What the stages would stop at, of rows that can all be read."""
    try:
        rows, eval_rows = read_data(recipe)
        stages = rows_of_stages(recipe, rows)
        missing = without_rejected(stages, eval_rows)
        if not missing:
            check_answers(recipe, stages, eval_rows)
    except DataError:
        raise
    except UserError as problem:
        return [Notice(str(path), "settings", f"{path}: {problem}")]
    return [
        Notice(
            row.source,
            "missing_answer",
            f"{row.source}: the row has no `rejected` answer, which stage 2 needs. Add one.",
        )
        for row in missing
    ]
