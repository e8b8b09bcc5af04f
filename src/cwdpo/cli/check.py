"""``cwdpo check``: what would stop training, before it begins."""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.cli.usage import recipe_comes_first
from cwdpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cwdpo.data.check import CheckReport, Notice, RowReport
    from cwdpo.data.encode import Encoder
    from cwdpo.data.image_roots import GivenRoots
    from cwdpo.recipes.memory import ModelFacts, StepPlan

_LANGUAGE = "language"
Memory = dict[str, dict[str, int]]
_SHOWN = 10
_BETWEEN_UPDATES = 0.1  # seconds


def check(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A file, pattern or directory of rows, hf:OWNER/NAME:SPLIT, or a recipe.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", help="Count its tokens, and list the layers that LoRA would train.")
    ] = None,
    image_root: ImageRootOption = None,
    target_modules: Annotated[str, typer.Option("--target-modules", help="As model.lora.target_modules.")] = _LANGUAGE,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=2, help="As data.max_length.  [default: the model's own limit]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Read every row, open its images, count its tokens. Exits with 1 if something would stop training.

    With a recipe: its settings, all its files, and whether each stage's rows have what the stage needs; settings that
    would be changed for `cwdpo train` are given in the same way: --stage2.beta 0.2.

    Needs no GPU, and loads no weights.
    """
    if str(data).startswith("-"):  # what no option names comes to stand in its place
        words = [str(data), *context.args]
        if any(word.endswith((".yaml", ".yml")) for word in words):
            raise recipe_comes_first("cwdpo check", words)
        _refuse_settings(context, words)
    facts: ModelFacts | None = None
    plan: StepPlan | None = None
    if _is_recipe(data):
        from cwdpo.config.recipe_file import naming_lines

        for option, value in (("--model", model), ("--image-root", image_root), ("--max-length", max_length)):
            if value is not None:
                raise ConfigError(f"{option} has no effect beside {data}, which sets it. Leave it out.")
        quiet_libraries()
        from cwdpo.recipes.preflight import check_recipe

        with naming_lines(data, context.args):
            report, facts, plan = check_recipe(data, check_file, context.args)
    else:
        _refuse_settings(context, context.args)
        encoder: Encoder | None = None
        if model is not None:
            quiet_libraries()
            from cwdpo.recipes.preflight import read_model

            encoder, facts = read_model(
                model, target_modules, trust_remote_code=trust_remote_code, max_length=max_length
            )
        elif max_length is not None:
            raise ConfigError("--max-length counts the tokens of a model. Add --model.")
        elif target_modules != _LANGUAGE:
            raise ConfigError("--target-modules names layers of a model. Add --model.")
        report = check_file(data, image_root, encoder)
        if report.num_records == 0 and report.findings:
            raise DataError(report.findings[0].message)
    _print(report, facts, plan, as_json)
    if not report.ok:
        raise typer.Exit(1)


def _refuse_settings(context: typer.Context, words: Sequence[str]) -> None:
    """Words that no option names are settings of a recipe, and rows have none."""
    if not words:
        return
    first = words[0]
    if not first.startswith("-"):
        context.fail(f"Got unexpected extra argument ({' '.join(words)})")
    context.fail(f"No such option: {first}")


def check_file(data: Path, image_root: "GivenRoots", encoder: "Encoder | None") -> "CheckReport":
    """The report of one file, with a counter on the terminal while it is made."""
    from cwdpo.data.check import check_rows

    columns = (SpinnerColumn(), TextColumn("{task.completed} rows checked"))
    console = Console(stderr=True)
    shown = sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("check", total=None)
        due = 0.0

        def update(count: int) -> None:
            nonlocal due
            if time.monotonic() >= due:  # an update takes as long as a row
                progress.update(task, completed=count)
                due = time.monotonic() + _BETWEEN_UPDATES

        return check_rows(data, image_root=image_root, encoder=encoder, on_row=update if shown else None)


def _print(report: "CheckReport", facts: "ModelFacts | None", plan: "StepPlan | None", as_json: bool) -> None:
    """Totals, token budgets, what a model would train, and the first of the problems; or everything as JSON."""
    memory: Memory = {}
    if facts is not None:
        from cwdpo.recipes.memory import StepPlan, step_memory

        longest = max((row.longest or 0 for row in report.rows), default=0)
        plans = {"lora": StepPlan(), "full": StepPlan(lora=False)} if plan is None else {"recipe": plan}
        memory = {name: step_memory(facts, wanted, longest) for name, wanted in plans.items()}
    if as_json:
        model = None if facts is None else {**facts, "memory": memory}
        print(json.dumps(report.to_json() | {"model": model}, ensure_ascii=False))
        return
    console = Console()
    if report.num_records:
        console.print(_totals(report))
    if facts is not None and report.rows:  # without rows there is nothing to count
        console.print(_tokens(report.rows, facts["max_length"]))
        console.print(_model_table(facts, memory))
        if plan is not None:
            console.print(Text(room_for(plan, memory["recipe"]["total"])), soft_wrap=True)
    _list(report.notes, "note", console)
    _list(report.findings, "STOPS TRAINING", console)
    count = len(report.findings)
    what = "Nothing stops" if count == 0 else "1 thing stops" if count == 1 else f"{count} things stop"
    elsewhere = " on a machine with a GPU" if any(note.name == "needs_gpu" for note in report.notes) else ""
    console.print(f"{what} training{elsewhere}.", style="red" if count else "green")


def _totals(report: "CheckReport") -> Table:
    summary = report.summary()
    table = _plain_table(report.path)
    table.add_row("rows", f"{summary['rows']} usable of {summary['records']}")
    table.add_row("formats", ", ".join(f"{name}: {count}" for name, count in summary["formats"].items()) or "none")
    table.add_row("images", f"{summary['images']} in {summary['with_images']} rows")
    table.add_row("with rejected answers", str(summary["with_rejected"]))
    table.add_row("with a gentle negative", str(summary["with_gentle"]))
    return table


def _tokens(rows: Iterable["RowReport"], limit: int | None) -> Table:
    title = f"token budget, limit {limit or 'none'}"
    table = Table("tokens", "mean", "largest", "in", title=title, title_justify="left")
    columns: dict[str, Callable[[RowReport], int | None]] = {
        "prompt text": lambda row: row.text_tokens,
        "prompt images": lambda row: row.image_tokens,
        "chosen": lambda row: row.chosen_tokens,
        "rejected, longest": lambda row: max(row.rejected_tokens or [], default=None),
        "gentle": lambda row: row.gentle_tokens,
        "prompt and answer": lambda row: row.longest,
    }
    for name, count in columns.items():
        counted = [(tokens, row.source) for row in rows if (tokens := count(row)) is not None]
        if counted:
            largest, source = max(counted, key=lambda item: item[0])
            mean = sum(tokens for tokens, _ in counted) / len(counted)
            table.add_row(name, f"{mean:.1f}", str(largest), Text(source))
    return table


def _model_table(facts: "ModelFacts", memory: Memory) -> Table:
    from cwdpo.memory import human_bytes

    table = _plain_table(f"{facts['name_or_path']} ({facts['class']}, stored as {facts['dtype']})")
    for name, part in facts["parts"].items():
        trained = "trained" if part["trainable"] else "frozen"
        table.add_row(name, f"{part['total']:,} weights, {trained} in full finetuning")
    lora = facts["lora"]
    kinds = Counter(name.rsplit(".", 1)[-1] for name in lora["targets"])  # as in model.layers.0.self_attn.q_proj
    layers = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    table.add_row(f"LoRA, r {lora['r']}", f"{lora['weights']:,} weights in {len(lora['targets'])} layers: {layers}")
    for name, word in (("lora", "LoRA"), ("full", "full finetuning"), ("recipe", "this recipe")):
        if name in memory:
            parts = ", ".join(f"{key} {human_bytes(value)}" for key, value in memory[name].items() if key != "total")
            table.add_row(f"memory, {word}", f"about {human_bytes(memory[name]['total'])} ({parts})")
    for_what = "a step of the longest rows" if "recipe" in memory else "one pair of the longest row, with checkpointing"
    table.caption = f"Memory for {for_what}; right to a factor of 1.5."
    table.caption_justify = "left"
    return table


def room_for(plan: "StepPlan", needed: int) -> str:
    """Whether a recipe's step has room on the device here, and what would make it smaller.

    Needed are the bytes of a step.
    """
    from cwdpo.data.check import ROUGH
    from cwdpo.memory import human_bytes
    from cwdpo.recipes.memory import this_device

    device = this_device()
    there = f"{device.name} has {human_bytes(device.memory)}{'' if device.is_gpu else ' free'}"
    if needed * ROUGH <= device.memory:
        return f"fits: {there}."
    ways = [] if plan.lora else ["`model.lora: {}`"]
    ways += [] if plan.checkpointing else ["`trainer: {activation_checkpointing: auto}`"]
    ways += ["a smaller `trainer.per_device_train_batch_size`"] if plan.rows > 1 else []
    ways += ["`model.dtype: bfloat16`"] if plan.dtype == "float32" and device.has_bf16 else []
    ways += ["`model.quantization: {}`"] if plan.lora and plan.bits is None and device.is_gpu else []
    likely = "may not fit" if needed <= device.memory else "does not fit"
    return f"{likely}: {there}. Try {', or '.join(ways) or 'a smaller model, or a larger machine'}."


def _is_recipe(path: Path) -> bool:
    """Reading rows alone needs no YAML, which takes its time to import."""
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return False
    from cwdpo.config.recipe_file import is_recipe_file

    return is_recipe_file(path)


def _list(notices: Sequence["Notice"], title: str, console: Console) -> None:
    """Notices that say the same of many rows are one line, with the first row and a count."""
    groups: dict[tuple[str, str], list[Notice]] = {}
    for notice in notices:
        groups.setdefault((notice.name, _kind_of(notice)), []).append(notice)
    shown = list(groups.values())[:_SHOWN]
    for first, *others in shown:
        more = f" (and {len(others)} more row{'' if len(others) == 1 else 's'})" if others else ""
        console.print(Text(f"{title}: {first.message}{more}"), soft_wrap=True)
    left = [notice for group in list(groups.values())[_SHOWN:] for notice in group]
    if left:
        names = ", ".join(f"{count} {name}" for name, count in Counter(notice.name for notice in left).items())
        console.print(Text(f"{title}: and {len(left)} more ({names}). --json lists all."), soft_wrap=True)


_OF_ONE_ROW = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\b\d+\b")
"""In a message: quoted values, paths, and numbers, which differ from row to row where the problem is the same."""


def _kind_of(notice: "Notice") -> str:
    """A notice's message without its row and what is that row's alone."""
    return _OF_ONE_ROW.sub("", notice.message.removeprefix(notice.source))


def _plain_table(title: str) -> Table:
    table = Table(show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
