"""The page of results is what its maker makes of the kept numbers; nothing on it was written by hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cwdpo.compare.grid import Cell, Grid, read_grid
from cwdpo.compare.table import Results, Score
from docs.make_results import (
    DOCS,
    EMOJI,
    GRIDS,
    JUDGED,
    MARK,
    OURS,
    PARTS,
    PRETRAINED,
    SFT,
    ablation_claims,
    beyond,
    claims,
    emoji_claims,
    emoji_regret,
    page,
    pretrained,
    pretrained_claim,
    step_claims,
    with_numbers,
)


def test_the_page_is_made_from_the_kept_numbers(tmp_path: Path) -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == page(tmp_path)
    for picture in tmp_path.glob("*.svg"):
        assert (DOCS / "results" / picture.name).read_text(encoding="utf-8") == picture.read_text(encoding="utf-8")


def test_the_readme_has_the_same_numbers() -> None:
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert readme.count(MARK) == 6
    assert with_numbers(readme) == readme


@pytest.mark.parametrize(("name", "file"), [*GRIDS.items(), *PRETRAINED.items(), *EMOJI.items()])
def test_the_kept_numbers_are_those_of_the_grid(name: str, file: str) -> None:
    kept, grid = Results.load(DOCS / "results" / f"{name}.json").grid, read_grid(DOCS.parent / file)
    for part in ("methods", "settings", "worlds", "make", "measure", "target"):
        assert getattr(kept, part) == getattr(grid, part), part
    assert {*kept.seeds} <= {*grid.seeds}


@pytest.mark.parametrize(("gap", "counts"), [((0.3, 0.1), True), ((0.2, 0.1), False), ((0.3, None), False)])
def test_a_difference_counts_from_two_standard_errors_on(gap: tuple[float, float | None], counts: bool) -> None:
    assert beyond(Score(*gap, seeds=3)) is counts


def results(ours: float, *, start: float = 0.5) -> Results:
    """Every method at .5 everywhere, but ours, which is ``ours``, and the start."""
    grid = Grid(
        recipe="r",
        methods={SFT: {}, "DPO": {}, OURS: {}},
        settings={"trainer.learning_rate": [1e-4, 3e-4, 1e-3]},
        worlds={"habit": {}, "clean": {}},
        seeds=[0, 1],
        target="win",
        lower_is_better=["hallucination", "ece"],
    )
    found = {}
    for world in grid.worlds:
        for seed in grid.seeds:
            for method in ("start", *grid.methods):
                for rate in [None] if method == "start" else grid.settings["trainer.learning_rate"]:
                    value = {OURS: ours, "start": start}.get(method, 0.5) + 0.001 * seed
                    setting = () if rate is None else (("trainer.learning_rate", rate),)
                    found[Cell(world, seed, method, setting)] = {
                        "exact": value,
                        "exact_sampled": value,
                        "win": value,
                        "win_sampled": value,
                        "hallucination": 1 - value,
                        "ece": 1 - value,
                    }
    return Results(grid, found)


@pytest.mark.parametrize(("ours", "holds"), [(0.7, [True] * 6), (0.3, [False] * 6)])
def test_claims_follow_the_numbers(ours: float, holds: list[bool]) -> None:
    found = list(claims(results(ours), results(ours)))
    assert [claim.holds for claim in found[:6]] == holds
    assert [claim.holds for claim in found[-5:]] == [ours > 0.5] * 5


@pytest.mark.parametrize(("ours", "better", "even"), [(0.7, True, True), (0.5, False, True), (0.3, False, False)])
def test_claims_on_emoji_follow_the_numbers(ours: float, better: bool, even: bool) -> None:
    found = list(emoji_claims(results(ours)))
    assert [claim.holds for claim in found[:4]] == [better] * 4
    assert [claim.holds for claim in found[4:8]] == [False, better, False, better]
    assert [claim.holds for claim in found[8:]] == [even, better]
    assert [claim.goal.split("*")[1] for claim in found[4:]] == ["habit", "habit", *["clean"] * 4]
    assert emoji_regret(results(ours)).holds is even


@pytest.mark.parametrize(
    ("ours", "start", "holds"), [(0.7, 0.6, True), (0.7, 0.5, False), (0.3, 0.6, False), (0.7, 0.3, False)]
)
def test_only_dpo_may_fall_behind_its_start(ours: float, start: float, holds: bool) -> None:
    found = [claim for claim in emoji_claims(results(ours, start=start)) if "falls behind" in claim.goal]
    assert [claim.holds for claim in found] == [holds, holds]


def of_grid(worlds: list[str], settings: dict[str, list[Any]], wins: dict[tuple[str, str, Any], float]) -> Results:
    """Two seeds that agree, by the win rate of each world, method and setting (None where the grid has none)."""
    methods: dict[str, dict[str, Any]] = {method: {} for _, method, _ in wins}
    grid = Grid(recipe="r", methods=methods, settings=settings, worlds={w: {} for w in worlds}, seeds=[0, 1],
                target="win", baseline=next(iter(methods)))  # fmt: skip
    found: dict[Cell, Mapping[str, float]] = {}
    for (world, method, value), win in wins.items():
        setting = () if value is None else ((next(iter(settings)), value),)
        found |= {Cell(world, seed, method, setting): {"win": win + 0.001 * seed} for seed in grid.seeds}
    return Results(grid, found)


@pytest.mark.parametrize(("early", "holds"), [(0.8, [True, True]), (0.65, [True, False]), (0.5, [False, False])])
def test_fewer_steps_are_those_that_reach_a_rivals_longest_run(early: float, holds: list[bool]) -> None:
    wins = {("habit", OURS, 20): early, ("habit", OURS, 80): 0.9}
    wins |= {("habit", SFT, 20): 0.9, ("habit", SFT, 80): 0.6}
    wins |= {("habit", "DPO", 80): 0.65, ("habit", "DPO, beta .5", 80): 0.7}
    found = list(step_claims(of_grid(["habit"], {"trainer.max_steps": [20, 80]}, wins)))
    assert [claim.holds for claim in found] == holds
    assert "with 20 steps" in found[0].evidence
    assert "less DPO, beta .5 with 80" in found[1].evidence


@pytest.mark.parametrize(("habit", "base", "holds"), [(0.1, 0.0, True), (0.1, -0.1, False), (0.0, 0.0, False)])
def test_a_part_helps_that_helps_somewhere_and_harms_nowhere(habit: float, base: float, holds: bool) -> None:
    wins = {("habit", "whole", None): 0.7 + habit, ("base", "whole", None): 0.7 + base}
    wins |= {(world, part, None): 0.7 for world in ("habit", "base") for part in (*PARTS, *JUDGES)}
    found = list(ablation_claims(of_grid(["habit", "base"], {}, wins), when=" then"))
    assert [claim.holds for claim in found[:-3]] == [holds] * len(PARTS)
    assert all(" then, in `win`" in claim.goal for claim in found)


def test_a_judge_is_compared_with_no_judge_with_no_samples_and_with_no_cooling() -> None:
    wins = {("habit", "whole", None): 0.6} | {("habit", part, None): 0.8 for part in PARTS}
    found = list(
        ablation_claims(
            of_grid(
                ["habit"],
                {},
                wins | {("habit", judge, None): win for judge, win in zip(JUDGES, (0.7, 0.5), strict=True)},
            )
        )
    )
    assert [claim.holds for claim in found[-3:]] == [True, False, True]


def test_a_part_whose_run_is_not_in_the_grid_has_no_claim() -> None:
    wins = {("habit", "whole", None): 0.6, ("habit", "without cooling", None): 0.5, ("habit", NO_SAMPLES, None): 0.5}
    found = list(ablation_claims(of_grid(["habit"], {}, wins | {("habit", judge, None): 0.5 for judge in JUDGES})))
    assert [claim.goal.split()[0] for claim in found[:-3]] == ["Cooling", "Mixing"]


def test_the_parts_are_runs_of_the_ablations() -> None:
    assert {*PARTS, *JUDGES} < {*read_grid(DOCS.parent / GRIDS["ablations"]).methods}


RATE = "trainer.learning_rate"
JUDGES = (JUDGED, f"{JUDGED}, without cooling")
NO_SAMPLES = "without sampled negatives"


def of_people(who: dict[tuple[str, float], float]) -> tuple[Results, dict[str, Any]]:
    """A grid on the pretrained model, by each run's change of ``who`` from a start of .8; and its answers."""
    grid = Grid(
        recipe="r",
        methods={"DPO": {}, OURS: {}},
        settings={RATE: [5e-4, 1e-3]},
        worlds={"people": {}},
        seeds=[0],
        target="who",
    )
    found = {Cell("people", 0, "start", ()): {"who": 0.8}}
    runs = {}
    for (method, rate), gap in who.items():
        cell = Cell("people", 0, method, ((RATE, rate),))
        found[cell] = {"who": 0.8 + gap}
        runs[f"{method}, {cell.label}"] = {"pictures": 50, "changes": {"who": {"mean": gap, "error": 0.02}}}
    said = {"start": ["man"], "DPO, learning_rate 0.001": ["man\nman | woman"], f"{OURS}, learning_rate 0.001": ["boy"]}
    return Results(grid, found), {"names": ["woman"], "said": said, "runs": runs}


@pytest.mark.parametrize(
    ("dpo", "ours", "holds"),
    [
        ((-0.02, -0.12), (-0.2, -0.03), True),  # where DPO loses little, nothing is asked
        ((-0.02, -0.12), (0.0, -0.04), False),
        ((-0.11, -0.12), (-0.04, 0.0), False),  # at every such rate
        ((-0.02, -0.09), (0.0, 0.0), False),  # DPO loses too little for the goal to be tested
    ],
)
def test_the_goal_on_the_pretrained_model(dpo: tuple[float, float], ours: tuple[float, float], holds: bool) -> None:
    rates = (5e-4, 1e-3)
    changes = {
        (m, rate): gap for m, gaps in (("DPO", dpo), (OURS, ours)) for rate, gap in zip(rates, gaps, strict=True)
    }
    claim = pretrained_claim(*of_people(changes))
    assert claim.holds is holds
    assert ("not tested" in claim.evidence) is (min(dpo) > -0.1)
    assert f"DPO who {100 * dpo[1]:+.1f} ± 2.0; CW-DPO who {100 * ours[1]:+.1f} ± 2.0, in points" in claim.evidence


def test_answers_stand_side_by_side_in_one_line_each() -> None:
    text = pretrained(*of_people({("DPO", 1e-3): -0.5, (OURS, 1e-3): 0.1}))
    assert "| DPO | learning_rate 0.001 | 0.300 | -50.0 ± 2.0 |" in text
    assert "| start |  | 0.800 |  |" in text
    assert "| woman | man | man / man \\| woman | boy |" in text
    assert "shares of 50 held-out pictures in 1 seed;" in text
