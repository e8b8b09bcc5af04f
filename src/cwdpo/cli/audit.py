"""``cwdpo audit``: what separates chosen from rejected answers without a look at the image."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.progress import bars
from cwdpo.errors import DataError, UserError
from cwdpo.records import RunDirectory, check_place, write_json

if TYPE_CHECKING:
    from cwdpo.data.rows import Row
    from cwdpo.evaluation.audit.blind import BlindReading
    from cwdpo.evaluation.audit.clues import Audit
    from cwdpo.evaluation.intervals import Estimate


_NUM_ROWS = 200


def audit(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A file or directory of rows with rejected answers.", show_default=False),
    ],
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run, checkpoint or hub name: how far it gets without the image."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="Count its tokens too; a model or a hub name.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=1, help=f"A sample of this many rows for the model.  [default: {_NUM_ROWS}, or all there are]"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows at one time for the model.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples and of cross-validation.")] = 0,
    image_root: ImageRootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Find shortcuts in preference pairs: length, words, repetitions, fluency.

    With a run, audit.json is written into it, and its report shows it. Without a model this takes a second or two.
    """
    from cwdpo.models.naming import find_checkpoint

    if rows is not None and run is None:
        raise UserError(
            "--rows has no effect without a RUN, as texts take no time. Write one after DATA, or leave it out."
        )
    directory = RunDirectory(Path(run)) if run is not None and RunDirectory(Path(run)).recipe.is_file() else None
    if directory is not None:
        check_place(directory.audit, is_new=False)
        _refuse_other(directory, data)
    model = None if run is None else find_checkpoint(run)
    if model is not None and tokenizer is not None:
        raise UserError("--tokenizer has no effect beside a model, whose own tokens are counted. Leave it out.")
    from cwdpo.data.reading import choose_rows, read_rows
    from cwdpo.evaluation.audit.clues import MOST_ROWS, audit_texts

    found = [row for row in read_rows(data, image_root=image_root) if row.rejected]
    if not found:
        raise DataError(f"{data}: no row has a rejected answer, so there are no pairs to audit.")
    of_texts = choose_rows(found, MOST_ROWS, seed)
    count_tokens = None if tokenizer is None else _token_counter(tokenizer)
    readings: list[BlindReading] = []
    if model is not None:
        readings, count_tokens = _read_blind(
            model, choose_rows(found, rows or _NUM_ROWS, seed, asked=rows is not None), batch_size
        )
    result = audit_texts(of_texts, count_tokens=count_tokens, seed=seed)
    if readings:
        from cwdpo.evaluation.audit.blind import shortcuts_of, warnings_of

        result.shortcuts.extend(shortcuts_of(readings))
        result.warnings.extend(warnings_of(readings))
    as_object = _to_json(result, data, run)
    if directory is not None:
        write_json(directory.audit, as_object)
    if as_json:
        print(json.dumps(as_object, ensure_ascii=False))
        return
    _show(result, len(found), Console())
    if directory is not None:
        print(f"written: {directory.audit}")


def _refuse_other(directory: RunDirectory, data: Path) -> None:
    """Replace an audit of the same data alone."""
    if not directory.audit.is_file():
        return
    try:
        kept = json.loads(directory.audit.read_bytes())
    except ValueError:
        kept = None
    if not isinstance(kept, Mapping) or kept.get("data") != str(data):
        raise UserError(f"{directory.audit} is an audit of other data, and is not overwritten. Move it away first.")


def _token_counter(tokenizer: str) -> Callable[[str], int]:
    from cwdpo.cli.quiet import quiet_libraries

    quiet_libraries()
    from cwdpo.models.loading import load_processor
    from cwdpo.models.naming import find_checkpoint

    loaded: Any = load_processor(find_checkpoint(tokenizer))
    return lambda text: len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _read_blind(model: str, rows: "list[Row]", batch_size: int) -> "tuple[list[BlindReading], Callable[[str], int]]":
    from cwdpo.cli.quiet import quiet_libraries

    quiet_libraries()
    from cwdpo.evaluation.audit.blind import measure_blind

    with bars() as on_progress:
        return measure_blind(model, rows, batch_size=batch_size, progress=partial(on_progress, "rows, all views"))


def _to_json(result: "Audit", data: Path, run: str | None) -> dict[str, Any]:
    """Names first; an estimate is ``{"value", "low", "high", "n"}``."""
    return {
        "data": str(data),
        "model": run,
        "rows": result.rows,
        "pairs": result.pairs,
        "shortcuts": [{"name": one.name, **one.won._asdict()} for one in result.shortcuts],
        "separations": [{"name": one.family, **one.accuracy._asdict()} for one in result.separations],
        "clues": [asdict(one) for one in result.clues],
        "warnings": [asdict(one) for one in result.warnings],
    }


def _show(result: "Audit", there: int, console: Console) -> None:
    sampled = f" (a sample of {there})" if there > result.rows else ""
    console.print(
        f"{result.pairs} pairs of {result.rows} rows{sampled}. Shares of pairs, 95 % intervals; ties count half."
    )
    table = Table("shortcut", "picks the chosen answer", "95 %")
    for shortcut in result.shortcuts:
        table.add_row(Text(shortcut.name), *_cells(shortcut.won))
    if result.separations:
        table.add_section()
    for separation in result.separations:
        table.add_row(Text(f"learned from {separation.family}"), *_cells(separation.accuracy))
    console.print(table)
    if not result.separations:
        console.print("Too few different chosen answers to learn from some and test on others.")
    if result.clues:
        clues = Table("clearest differences", "in chosen", "in rejected", "rows: more in chosen / rejected")
        for clue in result.clues:
            shares = (f"{100 * share:.0f} %" for share in (clue.in_chosen, clue.in_rejected))
            clues.add_row(
                Text(f"{clue.family}: {clue.feature}"), *shares, f"{clue.more_in_chosen} / {clue.more_in_rejected}"
            )
        console.print(clues)
    for warned in result.warnings:
        console.print(Text(f"WARNING {warned.name}: {warned.evidence}\n  {warned.advice}"), soft_wrap=True)
    if not result.warnings:
        console.print("No shortcut is above 65 % beyond its interval.")


def _cells(estimate: "Estimate") -> tuple[str, str]:
    return f"{100 * estimate.value:.1f} %", f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
