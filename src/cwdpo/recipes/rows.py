"""The rows of a recipe: read, divided between its stages, and looked at before anything is loaded."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cwdpo.config.recipe import Recipe
from cwdpo.data.images import peek_image
from cwdpo.data.reading import read_rows, split_rows
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, DataError
from cwdpo.records.lines import Stage

logger = logging.getLogger(__name__)


def read_data(recipe: Recipe) -> tuple[list[Row], list[Row] | None]:
    """Training rows of all files, and evaluation rows if the recipe names any."""
    data = recipe.data
    rows = [row for file in train_files(recipe) for row in read_rows(file, image_root=data.image_root)]
    return rows, read_rows(Path(data.eval), image_root=data.image_root) if data.eval else None


def train_files(recipe: Recipe) -> list[Path]:
    """The files of ``data.train``."""
    named = recipe.data.train
    return [Path(file) for file in ([named] if isinstance(named, str) else named)]


def rows_of_stages(recipe: Recipe, rows: Sequence[Row]) -> dict[Stage, list[Row]]:
    """The rows that each stage trains on.

    Raises:
        ConfigError: a stage would have none.
    """
    if recipe.stage1 is None:
        return {"stage2": list(rows)}
    if recipe.stage2 is None:
        return {"stage1": list(rows)}
    first, second = split_rows(rows, recipe.data.stage1_fraction, recipe.seed)
    return {"stage1": first, "stage2": second}


def check_answers(recipe: Recipe, stages: Mapping[Stage, Sequence[Row]], eval_rows: Sequence[Row] | None) -> None:
    """Refuse rows that lack an answer which their stage cannot do without.

    Raises:
        ConfigError: the objective of stage 1 needs gentle negatives, and no row of it has one.
        DataError: a row that stage 2 trains or is evaluated on has no rejected answer.
    """
    settings = recipe.stage1
    if settings is not None and settings.objective != "plain" and not any(row.gentle for row in stages["stage1"]):
        raise ConfigError(
            f"stage1.objective is `{settings.objective}`, but no row has a `gentle` negative (an answer with one minor "
            "error). Add them, or write `stage1: {objective: plain}`."
        )
    missing = without_rejected(stages, eval_rows)
    if missing:
        more = f" (nor have {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(f"{missing[0].source}: the row has no `rejected` answer{more}, which stage 2 needs. Add one.")


def without_rejected(stages: Mapping[Stage, Sequence[Row]], eval_rows: Sequence[Row] | None) -> list[Row]:
    """Rows that would stop stage 2, of those it trains and is evaluated on."""
    return [row for row in [*stages["stage2"], *(eval_rows or [])] if not row.rejected] if "stage2" in stages else []


def warn_of_equal_answers(stages: Mapping[Stage, Sequence[Row]]) -> None:
    """Say how many pairs of stage 2 hold the same answer twice: they cost time and teach nothing."""
    rows = stages.get("stage2", [])
    equal = [row for row in rows if row.chosen.strip() in (answer.strip() for answer in row.rejected)]
    if equal:
        logger.warning(
            "%d of %d rows of stage 2 have the same answer as `chosen` and `rejected`, the first at %s: they teach "
            "nothing. `cwdpo check` lists them; take them out.",
            len(equal),
            len(rows),
            equal[0].source,
        )


def peek_at_images(rows: Iterable[Row]) -> None:
    """Look at every image's file and header, each file once.

    Raises:
        DataError: names the first row with an image that cannot be trained on.
    """
    seen: set[Path] = set()
    for row in rows:
        for image in row.images:
            if not isinstance(image, Path) or image not in seen:
                peek_image(image, source=row.source)
            if isinstance(image, Path):
                seen.add(image)
