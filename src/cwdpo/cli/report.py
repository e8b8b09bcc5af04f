"""``cwdpo report``: one page about one or several runs, written once or served while they train."""

from pathlib import Path
from typing import Annotated

import typer

from cwdpo.errors import ConfigError, UserError
from cwdpo.records import RunDirectory


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directories, or directories of runs.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page.  [default: RUN/report.html, for several ./report.html]")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Serve the page on this machine, kept up to date, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="With --follow.  [default: 8765, or the next that is free]")
    ] = None,
) -> None:
    """Write a page about runs: what went wrong, curves, calibration, and answers token by token.

    One HTML file that needs nothing outside itself. Needs no GPU, no model and no torch.
    """
    if follow:
        if out is not None:
            raise ConfigError("--out has no effect with --follow, which writes no file. Leave one of them out.")
        _follow(runs, port)
        return
    if port is not None:
        raise ConfigError("--port has no effect without --follow. Add --follow, or leave it out.")
    one = len({run.resolve() for run in runs}) == 1
    page = out or (RunDirectory(runs[0]).report if one else Path("report.html"))
    _check_ours(page, runs)
    from cwdpo.report import write_report

    print(f"report: {write_report(runs, page)}")


def _check_ours(page: Path, runs: list[Path]) -> None:
    """A page of ours may be replaced, and so may the one that a run directory keeps; nothing else is overwritten."""
    if not page.is_file() or page.resolve() in [RunDirectory(run.resolve()).report for run in runs]:
        return
    from cwdpo.report.page import GENERATOR, is_page_of

    if not is_page_of(GENERATOR, page):
        raise UserError(f"{page} is not a report of cwdpo, and nothing else is overwritten. Give another --out.")


def _follow(runs: list[Path], port: int | None) -> None:
    if port is not None and not 1 <= port <= 65535:
        raise ConfigError(f"--port is {port}, but must be from 1 to 65535. Try 8765.")
    from cwdpo.report.live import open_server

    with open_server(runs, port) as server:
        print(f"report: {server.url}  (Ctrl-C ends it)", flush=True)
        for run in runs:
            if not run.exists():
                print(f"{run} does not exist yet: the page waits for it.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nThe page is no longer served. Training continues.")
