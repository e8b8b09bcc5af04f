"""``cwdpo negatives show``: a page of a file's negatives, or of what a run sampled."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cwdpo.errors import UserError

if TYPE_CHECKING:
    from cwdpo.config.recipe import Recipe
    from cwdpo.data.rows import Row
    from cwdpo.report.negatives_read import Weigh


def show(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Rows with negatives, or RUN/negatives/refresh-*.jsonl.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The HTML page; only an older page is replaced.", show_default=False)
    ],
    image_root: Annotated[
        Path | None, typer.Option("--image-root", help="Where relative image paths start.  [default: FILE's directory]")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows on the page, from the first.")] = 200,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Of a refresh: the rows it sampled for.  [default: those of the run's recipe]"),
    ] = None,
) -> None:
    """Write one HTML page of pictures, answers and negatives, with every difference marked."""
    from cwdpo.report.negatives_page import refuse_to_replace, write_negatives_page
    from cwdpo.report.negatives_read import is_refresh

    refuse_to_replace(file, out)
    if not is_refresh(file):
        if data is not None:
            raise UserError("--data is for the record of a refresh; a file of rows holds its rows itself.")
        print(f"wrote {write_negatives_page(file, out, image_root=image_root, limit=limit)}")
        return
    recipe = _recipe_of(file)
    rows = _sampled_for(file, recipe, data, image_root)
    write_negatives_page(file, out, limit=limit, sampled_for=rows, weigh=None if recipe is None else weight_of(recipe))
    print(f"wrote {out}")


def weight_of(recipe: "Recipe") -> "Weigh | None":
    """w_c of an answer by its lbar, where the run's floor is a number by now."""
    cooling = None if recipe.stage2 is None else recipe.stage2.cooling
    if cooling is None or cooling.constant is not None or isinstance(cooling.floor, str):
        return None
    import torch

    from cwdpo.cooling import cooling_weight

    floor, temperature = float(cooling.floor), cooling.temperature
    return lambda lbar: cooling_weight(torch.tensor(lbar), floor, temperature=temperature).item()


def recipe_of_run(run: Path) -> "Recipe | None":
    """The resolved recipe in a run's directory; None where there is none."""
    from cwdpo.config.reading import read_recipe
    from cwdpo.records.run_directory import RunDirectory

    path = RunDirectory(run).recipe
    return read_recipe(path) if path.is_file() else None


def _recipe_of(refresh: Path) -> "Recipe | None":
    return recipe_of_run(refresh.resolve().parent.parent)


def _sampled_for(
    refresh: Path, recipe: "Recipe | None", data: Path | None, image_root: Path | None
) -> dict[int, "Row"]:
    """Stage 2's rows, by their place in training."""
    from cwdpo.data.reading import read_rows, split_rows

    if recipe is None and data is None:
        raise UserError(f"{refresh}: what a refresh sampled for is not beside it. Name its rows with --data ROWS.")
    if recipe is None:
        assert data is not None
        return _by_id(refresh, read_rows(data, image_root=image_root))
    train = recipe.data.train
    files = [str(data)] if data is not None else [train] if isinstance(train, str) else train
    root = image_root or (None if data is not None else recipe.data.image_root)
    rows = [row for file in files for row in read_rows(Path(file), image_root=root)]
    if recipe.stage1 is not None:
        _, rows = split_rows(rows, recipe.data.stage1_fraction, recipe.seed)
    return dict(enumerate(rows))


def _by_id(refresh: Path, rows: list["Row"]) -> dict[int, "Row"]:
    """The rows of a refresh that has lost its run: its candidates name them."""
    from cwdpo.negatives.refreshes import read_refresh

    known = {row.id: row for row in rows if row.id}
    found = {}
    for candidate in read_refresh(refresh).candidates:
        if candidate.id not in known:
            raise UserError(
                f"{refresh}: was sampled for a row with the id {candidate.id!r}, which --data does not have. Name the "
                "data of the run, or leave the file in the run's directory, beside its recipe.yaml."
            )
        found[candidate.row] = known[candidate.id]
    return found
