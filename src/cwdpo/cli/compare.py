"""``cwdpo compare``: methods x settings x seeds, one table."""

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.cli.train import trainer_fields
from cwdpo.errors import ConfigError
from cwdpo.records import RunDirectory, check_place, write_json, write_text


def compare(
    grid: Annotated[Path, typer.Argument(metavar="GRID", help="The grid, a YAML file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The directory of the grid; another start goes on in it.")],
    jobs: Annotated[int, typer.Option("--jobs", help="Processes, of one thread each.")] = 1,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="Begin no run after this time.  [default: all that it takes]")
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep trained weights, which are removed once they are measured.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; write the tables of what is done.")] = False,
) -> None:
    """Train and measure every method with every setting and seed of a grid, and say which is better by how much.

    What is done is not done again: interrupt it, or give it --minutes, and start it once more to go on.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}, but must be at least 1. Write the number of runs at one time.")
    if minutes is not None and minutes <= 0:
        raise ConfigError(f"--minutes is {minutes:g}, but must be above 0. Leave it out for all that it takes.")
    if RunDirectory(out).metrics.is_file():
        raise ConfigError(f"{out} is a run, and a grid has many. Give another --out.")
    check_place(out, is_directory=True, is_new=False)
    from cwdpo.compare.grid import cells, read_grid

    wanted = read_grid(grid, trainer_fields=None if table else trainer_fields)
    if not table:
        quiet_libraries()
        from cwdpo.compare.run import Progress, run_grid

        def show(progress: Progress) -> None:
            left = "" if progress.minutes_left is None else f", about {progress.minutes_left:.0f} min left"
            print(f"\r{progress.done} of {progress.total} runs{left}   ", end="", flush=True)

        try:
            run_grid(wanted, out, jobs=jobs, minutes=minutes, keep_models=keep_models, on_progress=show)
        finally:
            print()
    from cwdpo.compare.table import Results, markdown, summary
    from cwdpo.report import write_report

    results = Results.read(wanted, out)
    if not results.measures:
        why = "Leave --table out to begin." if table else f"{minutes:g} minutes were too few for one; give more."
        raise ConfigError(f"{out} holds no run of this grid yet. {why}")
    text = markdown(results)
    write_text(out / "tables.md", text)
    results.save(out / "comparison.json")
    write_json(out / "summary.json", summary(results, title=f"{grid.stem}: {', '.join(wanted.methods)}"))
    print(text)
    done = sum((cell.directory(out) / "measured.json").is_file() for cell in cells(wanted))
    print(
        f"{done} of {sum(1 for _ in cells(wanted))} runs; tables: {out / 'tables.md'}, "
        f"report: {write_report([out], out / 'report.html')}"
    )
