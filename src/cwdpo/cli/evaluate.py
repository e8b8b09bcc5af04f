"""``cwdpo evaluate``: did tuning help? Metrics with intervals, beside the model that a run started from."""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.progress import progress_bars
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError
from cwdpo.records import RunDirectory

_STYLES = {"better": "green", "worse": "red", "changed": "yellow"}


def evaluate(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run, a checkpoint, adapters or a hub name.", show_default=False),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="A file or directory of rows, best held out.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="The base to compare with.  [default: of a run, what it started from]"),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Evaluate a sample of so many.  [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample.")] = 0,
    image_root: ImageRootOption = None,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Let the models answer too, which takes most of the time.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Answers at one time.")] = 16,
    vocabulary: Annotated[
        Path | None,
        typer.Option("--vocabulary", help="Objects for hallucination: one a line, other words for it after commas."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The JSON file.  [default: evaluation.json in a run, else none]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
    harness: Annotated[
        Literal["lmms-eval"] | None,
        typer.Option("--harness", help="Print the command that runs public benchmarks, and run it if it is installed."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="With --harness: benchmarks.  [default: pope,mmstar,ai2d]")
    ] = None,
) -> None:
    """Measure whether tuning helped: likelihood, calibration, drift, and what generated answers are worth.

    Every number has a 95 % interval over rows; differences from the base are paired, row by row.
    """
    if harness is not None:
        _hand_over(model, tasks)
        return
    if tasks is not None:
        raise ConfigError("--tasks has no effect without --harness. Add --harness lmms-eval, or leave it out.")
    if data is None:
        raise ConfigError("no rows to evaluate on. Add --data ROWS, best rows that were not trained on.")
    if vocabulary is not None and not generate:
        raise ConfigError("--vocabulary has no effect with --no-generate. Leave one of them out.")
    quiet_libraries()
    from cwdpo.evaluation.run import Settings, evaluate_model, place_of, started_from, write_evaluation

    settings = Settings(
        model=model,
        data=data,
        against=started_from(Path(model)) if against is None else against,
        image_root=image_root,
        num_rows=rows,
        seed=seed,
        max_new_tokens=max_new_tokens if generate else None,
        batch_size=batch_size,
        vocabulary=vocabulary,
    )
    place = place_of(settings, out)
    with progress_bars() as on_progress:
        found = evaluate_model(settings, on_progress)
    if place is not None:
        write_evaluation(found, place.path)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show_evaluation(found, Console())
    if place is not None:
        said = "replaced, as the same was asked before" if place.replaces else "written"
        print(f"{said}: {place.path}", file=sys.stderr if as_json else sys.stdout)


def words_of(run: RunDirectory) -> str:
    """What the newest evaluation of a run says."""
    newest = max(run.evaluations(), key=lambda path: path.stat().st_mtime_ns)
    return str(json.loads(newest.read_text("utf-8"))["words"])


def show_evaluation(found: Mapping[str, Any], console: Console) -> None:
    """A table of all measures, what was not measured, and what it means in words."""
    compared = found["against"] is not None
    base = ("base",) if compared else ()
    last = ("difference [95 %]", "beyond chance") if compared else ("[95 %]",)
    title = f"{found['rows']} rows" + (f", beside {found['against']}" if compared else "")
    look: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1), "title_justify": "left"}
    table = Table("", *base, "model", *last, title=title, **look)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for group, measures in groupby(found["measures"], key=lambda one: one["group"]):
        table.add_row(Text(group, style="bold"))
        for one in measures:
            table.add_row(*_line(one, compared=compared))
    console.print(table)
    skipped = "; ".join(f"{name.replace('_', ' ')} ({why})" for name, why in found["skipped"].items())
    console.print(Text(f"Not measured: {skipped}.", style="dim"), soft_wrap=True)
    console.print(Text(found["words"], style="bold"), soft_wrap=True)


def _line(one: Mapping[str, Any], *, compared: bool) -> list[str | Text]:
    from cwdpo.report.evaluations import VERDICTS, measure_number

    def interval(of: Mapping[str, float], sign: str = "") -> str:
        return f"[{measure_number(of['low'], sign=sign)}, {measure_number(of['high'], sign=sign)}]"

    arrow = {"up": " \u2191", "down": " \u2193", None: ""}[one["better"]]
    label, value = f"{one['label']}{arrow}", measure_number(one["value"])
    if not compared:
        return [label, value, interval(one)]
    base, difference, verdict = one["base"], one["difference"], one["verdict"]
    shift = interval(one)
    if difference is not None:
        shift = f"{measure_number(difference['value'], sign='+')} {interval(difference, '+')}"
    before = "" if base is None else measure_number(base["value"])
    return [label, before, value, shift, Text(VERDICTS.get(verdict, ""), style=_STYLES.get(verdict, ""))]


def _hand_over(model: str, tasks: str | None) -> None:
    quiet_libraries()
    from cwdpo.evaluation.harness import INSTALL, TASKS, harness_command

    words = harness_command(model, tasks or TASKS)
    print(shlex.join(["python", *words]), flush=True)
    if find_spec("lmms_eval") is None:
        print(INSTALL)
        return
    code = subprocess.run([sys.executable, *words], check=False).returncode
    if code:
        raise typer.Exit(code)
