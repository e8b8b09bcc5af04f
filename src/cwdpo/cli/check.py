"""``cwdpo check``: what would stop training, before it begins."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from cwdpo.cli.check_tables import show
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cwdpo.data.check_report import CheckReport
    from cwdpo.data.encode import Encoder


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
        from cwdpo.cli.check_recipe import check_recipe

        report, facts = check_recipe(data, checked)
        _tell(report, facts, as_json)
    else:
        _tell(*_check_data(data, model, image_root, target_modules, trust_remote_code, max_length), as_json)


def _tell(report: "CheckReport", facts: dict[str, Any] | None, as_json: bool) -> None:
    """Print the report; exit with 1 if something would stop training."""
    if facts is not None:
        from cwdpo.cli.model_facts import memory_of

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
        from cwdpo.cli.model_facts import encoder_and_facts

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
