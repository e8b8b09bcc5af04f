"""``cwdpo train``: run a recipe."""

import os
from collections.abc import Mapping
from contextlib import closing
from typing import Annotated, Any

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.config.reading import read_recipe
from cwdpo.errors import ConfigError


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of an interrupted run.")
    ] = False,
) -> None:
    """Run a recipe. Change settings with --key value: --stage2.beta 0.2, or --beta 0.2 where that is unambiguous.

    Values are YAML: --stage2.cooling null, --trainer.learning_rate 1e-6.

    Paths in the recipe start at the recipe, those on the command line where you are.
    """
    if recipe.startswith("-"):
        raise ConfigError(f"expected the recipe before {recipe}. Write: cwdpo train RECIPE {recipe} ...")
    settings = read_recipe(recipe, context.args, trainer_fields=trainer_fields)

    quiet_libraries()
    from cwdpo.recipes.run import run_recipe
    from cwdpo.trainers.progress import StageProgress

    with closing(StageProgress()) as progress:
        run = run_recipe(settings, resume=resume, callbacks=[progress])
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"done: {run.root}  (models in stage1/ and stage2/, curves in report.html)")


def trainer_fields() -> Mapping[str, Any]:
    """Names and types of what a ``trainer`` section may hold: the Trainer's settings and the few of the method."""
    from cwdpo.trainers.arguments import argument_types  # takes seconds, so only when all else in the recipe is right

    return argument_types()
