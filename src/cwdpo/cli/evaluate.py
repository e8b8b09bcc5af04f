"""``cwdpo evaluate``: did tuning help? Metrics with intervals, beside the model that a run started from."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError
from cwdpo.records import RunDirectory

_SECONDS_BETWEEN_LINES = 10.0
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
    rows: Annotated[int | None, typer.Option("--rows", help="Evaluate a sample of so many.  [default: all]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample.")] = 0,
    image_root: ImageRootOption = None,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Let the models answer too, which takes most of the time.")
    ] = True,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")] = 256,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Answers at one time.")] = 16,
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
    for name, value in (("--rows", rows), ("--max-new-tokens", max_new_tokens), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1. Leave it out for the default.")
    if vocabulary is not None and not generate:
        raise ConfigError("--vocabulary has no effect with --no-generate. Leave one of them out.")
    quiet_libraries()
    from cwdpo.evaluation.run import Settings, evaluate_model, place_given, place_in_run, started_from, write_evaluation

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
    run = RunDirectory(Path(model))
    place = None
    if out is not None:
        place = place_given(out, settings.question())
    elif run.recipe.is_file():
        place = place_in_run(run, settings.question())
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


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work on a terminal, else lines."""
    if not sys.stderr.isatty():
        yield ProgressLines()
        return
    with bars() as on_progress:
        yield on_progress


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each part of the work on a terminal, else nothing."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield on_progress


class ProgressLines:
    """A line on standard error for what is going on, at most every few seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._clock() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = self._clock()
            print(f"evaluation  {what} {done}/{total}", file=sys.stderr, flush=True)


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
