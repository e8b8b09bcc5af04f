"""``cwdpo demo``: the method on drawn scenes, beside SFT and DPO."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cwdpo.cli.quiet import quiet_libraries


def demo(
    out: Annotated[Path, typer.Option("--out", help="The run directory.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of scenes, answers and order.")] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="One minute: it shows that everything works, but gives no results.")
    ] = False,
) -> None:
    """Train a tiny model through both stages on drawn scenes, beside SFT and DPO, and write a report.

    Runs on a CPU in minutes; nothing is downloaded.
    """
    quiet_libraries()
    from cwdpo.demo.run import run_demo
    from cwdpo.trainers.callbacks import StageProgress

    with closing(StageProgress()) as progress:
        result = run_demo(out, seed=seed, small=small, say=partial(print, flush=True), callbacks=[progress])
    print(f"\n{result.table}\n\nreport: {result.report}")
