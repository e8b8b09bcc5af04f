"""``cwdpo init``: a first recipe, from what ``check`` knows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwdpo.cli.check import check_file
from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.contents import kind_of
from cwdpo.errors import ConfigError, DataError
from cwdpo.records import check_place, write_text

if TYPE_CHECKING:
    from cwdpo.config.foreign import Translated
    from cwdpo.data.check import RowReport
    from cwdpo.data.encode import Encoder
    from cwdpo.data.image_roots import GivenRoots


def init(
    data: Annotated[
        list[Path] | None, typer.Argument(metavar="DATA", help="Files or directories of rows.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A directory or a hub name.", show_default=False)] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Carry over: a YAML or JSON file of TRL, LLaMA-Factory, ms-swift or axolotl, or "
            "the command in quotes.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The new recipe; - prints it.")] = Path("recipe.yaml"),
    eval_data: Annotated[Path | None, typer.Option("--eval", help="Held-out rows, for probes.")] = None,
    image_root: ImageRootOption = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model.")
    ] = False,
) -> None:
    """Write a commented recipe for these rows, this model and this machine.

    Reads every row and counts its tokens; loads no weights. Next: cwdpo check RECIPE, cwdpo train RECIPE.
    """
    printed = str(out) == "-"
    foreign = _read_foreign(from_) if from_ is not None else None
    model = model or (str(foreign.settings.get("model.name_or_path") or "") if foreign is not None else "")
    if not model:
        models = [path for path in data or [] if path.is_dir() and kind_of(path) == "a model"]
        if models:
            raise ConfigError(f"{models[0]} is a model, and rows are needed there. Write --model {models[0]}.")
        raise ConfigError("no model. Add --model, a directory or a hub name such as Qwen/Qwen2.5-VL-3B-Instruct.")
    files = list(map(str, data or [])) or _files_of(foreign)
    if not printed:
        check_place(out)
    quiet_libraries()
    from cwdpo.recipes.drafting import draft_recipe
    from cwdpo.recipes.memory import this_device
    from cwdpo.recipes.preflight import read_model

    encoder, facts = read_model(model, "language", trust_remote_code=trust_remote_code)
    rows = [row for file in files for row in _usable_rows(file, image_root, encoder)]
    if eval_data is not None:
        _usable_rows(str(eval_data), image_root, encoder)
    draft = draft_recipe(
        data=files,
        rows=rows,
        facts=facts,
        device=this_device(),
        beside=Path.cwd() if printed else out.parent,
        image_root=list(map(str, image_root or [])),
        eval_data=None if eval_data is None else str(eval_data),
        foreign=foreign,
    )
    if printed:
        print(draft.text, end="")
    else:
        write_text(out, draft.text)
    for note in draft.notes:
        print(f"note: {note}", file=sys.stderr)
    if not printed:
        print(f"written: {out}  ({len(rows)} rows)\nnext:    cwdpo check {out}\n         cwdpo train {out}")


def _read_foreign(source: str) -> "Translated":
    quiet_libraries()
    from cwdpo.config.foreign import read_foreign
    from cwdpo.trainers.arguments import argument_types

    return read_foreign(source, trainer_fields=argument_types())


def _files_of(foreign: "Translated | None") -> list[str]:
    """The data that another tool's configuration names, where it can be found."""
    named = None if foreign is None else foreign.settings.get("data.train")
    if foreign is None or named is None:
        raise ConfigError("no rows. Name a file first: cwdpo init DATA --model MODEL.")
    files = [named] if isinstance(named, str) else list(named)
    for file in files:
        if not Path(file).exists():
            raise ConfigError(
                f"the {foreign.tool} configuration trains on {file!r}, which is not a file here. Give the file or "
                "directory of the rows, or hf:owner/name for the hub's: cwdpo init DATA --from ..."
            )
    return files


def _usable_rows(file: str, image_root: "GivenRoots", encoder: "Encoder") -> "list[RowReport]":
    """The rows of a file, checked; a DataError names the first that would stop training."""
    report = check_file(Path(file), image_root, encoder)
    if report.findings:
        more = len(report.findings) - 1
        also = f" {more} more thing{'s' if more > 1 else ''} would stop training: `cwdpo check {file}`." if more else ""
        raise DataError(f"{report.findings[0].message}{also}")
    return report.rows
