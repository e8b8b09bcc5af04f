"""The evaluation that a recipe asks for at the end of its run."""

from pathlib import Path

from cwdpo.config.recipe import Recipe
from cwdpo.evaluation.answers import Vocabulary
from cwdpo.evaluation.measuring import Progress
from cwdpo.evaluation.questions import read_questions
from cwdpo.evaluation.run import Settings, evaluate_model, place_in_run, started_from, write_evaluation
from cwdpo.recipes.preflight import peek_at_images
from cwdpo.records import RunDirectory


def check_evaluation(recipe: Recipe) -> None:
    """Read the rows and objects that will be evaluated, so that a mistake in them is found before training."""
    wanted = recipe.evaluate
    if wanted is None:
        return
    root = recipe.data.image_root_path
    questions = read_questions(Path(wanted.data), image_root=root, num_rows=wanted.rows, seed=recipe.seed)
    peek_at_images(question.row for question in questions)
    if wanted.vocabulary is not None:
        Vocabulary.read(Path(wanted.vocabulary))


def is_evaluated(run: RunDirectory, recipe: Recipe) -> bool:
    """Whether nothing is left to evaluate: the recipe asks for nothing, or for what the finished run already has."""
    settings = _settings(run, recipe)
    if settings is None:
        return True
    last = list(recipe.stages)[-1]
    if not run.is_finished(last):
        return False
    place = place_in_run(run, settings.question())
    return place.replaces and place.path.stat().st_mtime_ns >= run.finished_at(last)


def evaluate_run(run: RunDirectory, recipe: Recipe, progress: Progress) -> None:
    """Evaluate a finished run as its recipe asks, unless that was done."""
    settings = _settings(run, recipe)
    if settings is None or is_evaluated(run, recipe):
        return
    found = evaluate_model(settings, progress)
    write_evaluation(found, place_in_run(run, settings.question()).path)


def _settings(run: RunDirectory, recipe: Recipe) -> Settings | None:
    wanted = recipe.evaluate
    if wanted is None:
        return None
    return Settings(
        model=str(run.root),
        data=Path(wanted.data),
        against=started_from(run.root),
        image_root=recipe.data.image_root_path,
        num_rows=wanted.rows,
        seed=recipe.seed,
        max_new_tokens=wanted.max_new_tokens if wanted.generate else None,
        vocabulary=None if wanted.vocabulary is None else Path(wanted.vocabulary),
    )
