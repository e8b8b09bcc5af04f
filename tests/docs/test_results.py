"""The page of results is what its maker makes of the kept numbers; nothing on it was written by hand."""

from pathlib import Path

import pytest

from cwdpo.compare.grid import Cell, Grid, read_grid
from cwdpo.compare.table import Results, Score
from docs.make_results import DOCS, GRIDS, MARK, OURS, SFT, beyond, claims, page, with_headline


def test_the_page_is_made_from_the_kept_numbers(tmp_path: Path) -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page(GRIDS, tmp_path)
    for picture in tmp_path.glob("*.svg"):
        assert (DOCS / "results" / picture.name).read_text(encoding="utf-8") == picture.read_text(encoding="utf-8")


def test_the_readme_has_the_same_numbers() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert readme.count(MARK) == 2
    assert with_headline(readme) == readme


@pytest.mark.parametrize("name", GRIDS)
def test_the_kept_numbers_are_those_of_the_grid(name: str) -> None:
    kept, grid = (
        Results.load(DOCS / "results" / f"{name}.json").grid,
        read_grid(DOCS.parent / "examples/regimes" / f"{name}.yaml"),
    )
    for part in ("methods", "settings", "worlds", "make", "measure", "target"):
        assert getattr(kept, part) == getattr(grid, part), part
    assert {*kept.seeds} <= {*grid.seeds}


@pytest.mark.parametrize(("gap", "counts"), [((0.3, 0.1), True), ((0.2, 0.1), False), ((0.3, None), False)])
def test_a_difference_counts_from_two_standard_errors_on(gap: tuple[float, float | None], counts: bool) -> None:
    assert beyond(Score(*gap, seeds=3)) is counts


def results(ours: float) -> Results:
    """Every method at .5 everywhere, but ours, which is ``ours``."""
    grid = Grid(
        recipe="r",
        methods={SFT: {}, "DPO": {}, OURS: {}},
        settings={"trainer.learning_rate": [1e-4, 3e-4, 1e-3]},
        worlds={"habit": {}, "clean": {}},
        seeds=[0, 1],
        target="win",
        lower_is_better=["hallucination"],
    )
    found = {}
    for world in grid.worlds:
        for seed in grid.seeds:
            for method in ("start", *grid.methods):
                for rate in [None] if method == "start" else grid.settings["trainer.learning_rate"]:
                    value = (ours if method == OURS else 0.5) + 0.001 * seed
                    setting = () if rate is None else (("trainer.learning_rate", rate),)
                    found[Cell(world, seed, method, setting)] = {
                        "exact": value,
                        "exact_sampled": value,
                        "win": value,
                        "win_sampled": value,
                        "hallucination": 1 - value,
                    }
    return Results(grid, found)


@pytest.mark.parametrize(("ours", "holds"), [(0.7, [True] * 3), (0.3, [False] * 3)])
def test_claims_follow_the_numbers(ours: float, holds: list[bool]) -> None:
    found = list(claims(results(ours), results(ours)))
    assert [claim.holds for claim in found[:3]] == holds
    assert [claim.holds for claim in found[-5:]] == [ours > 0.5] * 5
