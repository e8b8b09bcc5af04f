"""``cwdpo train``: run a recipe."""

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cwdpo.cli.evaluate import ProgressLines, words_of
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import ConfigError
from cwdpo.records import STAGES, RunDirectory

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

    Values are YAML: --stage2.cooling null, --trainer.learning_rate 1e-6.

    Paths in the recipe start at the recipe, those on the command line where you are.
    """
    if recipe.startswith("-"):
        raise ConfigError(f"expected the recipe before {recipe}. Write: cwdpo train RECIPE {recipe} ...")
    from cwdpo.config.recipe_file import read_recipe

    settings = read_recipe(recipe, context.args, trainer_fields=trainer_fields)

    quiet_libraries()
    from torch import distributed

    from cwdpo.recipes.evaluating import is_evaluated
    from cwdpo.recipes.resuming import nothing_to_do
    from cwdpo.recipes.run import run_recipe
    from cwdpo.recipes.stages import is_main
    from cwdpo.trainers.callbacks import StageProgress

    run = RunDirectory(Path(settings.output_dir))
    if resume and is_main() and not run.has_begun:
        print(f"nothing to resume in {run.root}: starting from the beginning")
    was_done = nothing_to_do(run, settings) and is_evaluated(run, settings)
    with closing(StageProgress()) as progress:
        run = run_recipe(
            settings, resume=resume, callbacks=[progress], on_start=_print_start, on_evaluation=ProgressLines()
        )
    if distributed.is_available() and distributed.is_initialized():
        # the group's threads may outlive the interpreter otherwise, which aborts a run that is done
        distributed.destroy_process_group()
    if is_main():
        models = [f"{stage}/" for stage in STAGES if run.is_finished(stage)]  # one that was deleted is not named
        left = f"model{'s' if len(models) > 1 else ''} in {' and '.join(models)}, curves in {run.report.name}"
        if settings.evaluate is not None:
            print(f"evaluated: {words_of(run)}")
        if not was_done:
            print(found_in(run))
        if (page := run.kept("hub").get("page")) is not None:
            print(f"uploaded: {page}")
        print(f"{'already finished, nothing to do' if was_done else 'done'}: {run.root}  ({left})")


def _print_start(context: "RunContext") -> None:
    from cwdpo.recipes.announcing import start_lines

    for line in start_lines(context):
        print(line, flush=True)


def found_in(run: RunDirectory) -> str:
    """What the diagnosis of a finished run found, in a line."""
    from cwdpo.diagnosis import Diagnosis, title_of

    diagnosis = Diagnosis.from_json(json.loads(run.findings.read_text("utf-8"))) if run.findings.is_file() else None
    if diagnosis is None:
        return "diagnosis: nothing was logged that could be judged"
    # a sign may be found in both stages
    names = ", ".join(dict.fromkeys(title_of(finding.name).lower() for finding in diagnosis.findings))
    if not names:
        return f"diagnosis: {'no problem found' if diagnosis.clear else 'nothing could be judged'}"
    return f"diagnosis: {names}  (`cwdpo diagnose {run.root}` says what to do)"


def trainer_fields() -> Mapping[str, Any]:
    """Names and types of what a ``trainer`` section may hold: the Trainer's settings and the few of the method."""
    from cwdpo.trainers.arguments import argument_types  # takes seconds, so only when all else in the recipe is right

    return argument_types()
