"""``cwdpo check RECIPE``: every file of a recipe, and what its stages ask of the rows they get."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwdpo.cli.model_facts import encoder_and_facts
from cwdpo.config.reading import read_recipe
from cwdpo.config.recipe import LoraConfig, Recipe
from cwdpo.data.check_report import CheckReport, Notice
from cwdpo.data.encode import Encoder
from cwdpo.errors import DataError, UserError
from cwdpo.recipes.preflight import check_settings
from cwdpo.recipes.rows import check_answers, read_data, rows_of_stages, train_files, without_rejected
from cwdpo.records.run_directory import RunDirectory
from cwdpo.trainers.arguments import argument_types


def check_recipe(
    path: Path, check: Callable[[Path, Path | None, Encoder | None], CheckReport]
) -> tuple[CheckReport, dict[str, Any]]:
    """Check all that a recipe names, without its weights. Whether this machine has a GPU does not matter.

    Args:
        path: the recipe.
        check: makes the report of one file, with an image root and an encoder.

    Returns:
        One report over all files, and the facts of the model.

    Raises:
        UserError: a setting, or the model, cannot be used.
    """
    recipe = read_recipe(path, trainer_fields=argument_types)
    check_settings(recipe, RunDirectory(Path(recipe.output_dir)), elsewhere=True)
    encoder, facts = _model(recipe)
    root = Path(recipe.data.image_root) if recipe.data.image_root is not None else None
    files = train_files(recipe) + ([Path(recipe.data.eval)] if recipe.data.eval is not None else [])
    whole = CheckReport(str(path))
    for file in files:
        report = check(file, root, encoder)
        whole.num_records += report.num_records
        whole.rows += report.rows
        whole.findings += report.findings
        whole.notes += [note for note in report.notes if note.name != "no_rejected"]  # told exactly below
    if not any(finding.name != "too_long" for finding in whole.findings):
        whole.findings += _missing_answers(recipe, path)
    return whole, facts


def _model(recipe: Recipe) -> tuple[Encoder, dict[str, Any]]:
    lora = recipe.model.lora or LoraConfig()
    return encoder_and_facts(
        recipe.model.name_or_path,
        lora.target_modules,
        trust_remote_code=recipe.model.trust_remote_code,
        max_length=recipe.data.max_length,
        rank=lora.r,
    )


def _missing_answers(recipe: Recipe, path: Path) -> list[Notice]:
    """What the stages would stop at, of rows that can all be read."""
    try:
        rows, eval_rows = read_data(recipe)
        stages = rows_of_stages(recipe, rows)
        missing = without_rejected(stages, eval_rows)
        if not missing:
            check_answers(recipe, stages, eval_rows)
    except DataError:
        raise
    except UserError as problem:
        return [Notice(str(path), "settings", f"{path}: {problem}")]
    return [
        Notice(
            row.source,
            "missing_answer",
            f"{row.source}: the row has no `rejected` answer, which stage 2 needs. Add one.",
        )
        for row in missing
    ]
