"""``cwdpo train``: run a recipe."""

import gc
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwdpo.cli.ending import ending
from cwdpo.cli.progress import ProgressLines
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.cli.usage import recipe_comes_first
from cwdpo.errors import path_advice
from cwdpo.records import RunDirectory

if TYPE_CHECKING:
    from cwdpo.recipes.stages import RunContext


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")
    ] = False,
) -> None:
    """Run a recipe. Change settings with --key value: --stage2.beta 0.2, or --beta 0.2 where that is unambiguous.

    Values are YAML: --stage2.cooling null, --stage2.trainer.learning_rate 1e-6.

    Paths in the recipe start at the recipe, those on the command line where you are.
    """
    began = time.monotonic()
    if recipe.startswith("-"):
        raise recipe_comes_first("cwdpo train", [recipe, *context.args])
    from cwdpo.config.recipe_file import naming_lines, read_recipe
    from cwdpo.data.reading import without_collector

    with without_collector():  # what imports make stays: to search it takes a tenth of their time, and more later
        settings = read_recipe(recipe, context.args, trainer_fields=trainer_fields)
        quiet_libraries()
        from torch import distributed

        from cwdpo.recipes.evaluating import is_evaluated
        from cwdpo.recipes.resuming import nothing_to_do
        from cwdpo.recipes.run import run_recipe
        from cwdpo.recipes.stages import is_main
        from cwdpo.trainers.callbacks import StageProgress

        gc.freeze()

    run = RunDirectory(Path(settings.output_dir))
    there = list(run.root.iterdir()) if run.root.is_dir() else []
    if resume and is_main() and not run.has_begun and (run.recipe.is_file() or not there):
        near = "" if run.root.exists() else path_advice(run.root, otherwise="")
        meant = f". {near}" if near.startswith("Did you mean") else ""
        print(f"nothing to resume in {run.root}: starting from the beginning{meant}")
    was_done = nothing_to_do(run, settings) and is_evaluated(run, settings)
    with naming_lines(recipe, context.args), closing(StageProgress()) as progress:
        run = run_recipe(
            settings,
            resume=resume,
            callbacks=[progress],
            on_start=_print_start,
            on_evaluation=ProgressLines(),
            imports=time.monotonic() - began,
        )
    if distributed.is_available() and distributed.is_initialized():
        # the group's threads may outlive the interpreter otherwise, which aborts a run that is done
        distributed.destroy_process_group()
    if is_main():
        if (page := run.kept("hub").get("page")) is not None:
            print(f"uploaded: {page}")
        for line in ending(run, held_out=settings.data.eval, was_done=was_done):
            print(line)


def _print_start(context: "RunContext") -> None:
    from cwdpo.recipes.announcing import start_lines

    for line in start_lines(context):
        print(line, flush=True)


def trainer_fields() -> Mapping[str, Any]:
    """Names and types of what a ``trainer`` section may hold: the Trainer's settings and the few of the method."""
    from cwdpo.trainers.arguments import argument_types  # takes seconds, so only when all else in the recipe is right

    return argument_types()
