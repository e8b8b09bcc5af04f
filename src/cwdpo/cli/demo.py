"""``cwdpo demo``: the method on drawn scenes, beside SFT and DPO, or its files to play with."""

import os
import shlex
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError

_OUT = Path("runs/demo")


def demo(
    out: Annotated[
        Path | None,
        typer.Option("--out", help=f"The run directory.  [default: {_OUT}, or runs/habit]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of scenes, answers and order.")] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="One minute: it shows that everything works, but gives no results.")
    ] = False,
    habit: Annotated[
        bool,
        typer.Option(
            "--habit",
            help="Where preferences pay: a model with a habit, pairs of its captions, each method at two rates.",
        ),
    ] = False,
    files: Annotated[
        Path | None,
        typer.Option(
            "--files",
            metavar="DIR",
            help="Train nothing: write the demo's model, pictures, rows and a recipe into a new directory, "
            "to try the other commands on.",
        ),
    ] = None,
) -> None:
    """Train a tiny model through both stages on drawn scenes, beside SFT and DPO, and write a report.

    Runs on a CPU in minutes; nothing is downloaded. With --habit two processes train and measure the models, and
    another start goes on where one was stopped.
    """
    if files is not None:
        for option, given in (("--out", out is not None), ("--small", small), ("--habit", habit)):
            if given:
                raise ConfigError(f"{option} has no effect beside --files, which trains nothing. Leave it out.")
        _write_files(files, seed)
        return
    if habit:
        from cwdpo.cli.compare import compare
        from cwdpo.demo.habit import write_grid

        directory = out or _OUT.with_name("habit")
        compare(write_grid(directory, seed=seed, small=small), directory, jobs=min(2, os.cpu_count() or 1))
        return
    quiet_libraries()
    from cwdpo.demo.run import run_demo
    from cwdpo.trainers.callbacks import StageProgress

    with closing(StageProgress()) as progress:
        result = run_demo(out or _OUT, seed=seed, small=small, say=partial(print, flush=True), callbacks=[progress])
    print(f"\n{result.table}\n\nreport: {result.report}")


def _write_files(directory: Path, seed: int) -> None:
    from cwdpo.demo.files import HELD_OUT_ROWS, TRAIN_ROWS, write_files

    written = write_files(directory, seed=seed)
    model, train, held_out, image, recipe = (path.relative_to(directory) for path in written)
    print(
        f"written: {directory}, with {model}/ (a model), {train} ({TRAIN_ROWS} rows), {held_out} ({HELD_OUT_ROWS}), "
        f"{image.parent}/ and {recipe}\n"
        f"next:    cd {shlex.quote(str(directory))}\n"
        f"         cwdpo init {train} --model {model} --eval {held_out}\n"
        "         cwdpo check recipe.yaml\n"
        "         cwdpo train recipe.yaml"
    )
