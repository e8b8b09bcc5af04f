"""Means, errors, choices and regret against arithmetic done by hand."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cwdpo.compare.grid import Cell, Grid
from cwdpo.compare.table import Results, Score, markdown, summary
from cwdpo.errors import ConfigError
from cwdpo.report.tables import comparison_table

LOW, HIGH = (("lr", 0.1),), (("lr", 0.2),)
WINS = {
    # world, method, setting: value on seeds 0, 1 and on the tuning seed 9
    ("a", "start", ()): (0.5, 0.5, 0.5),
    ("a", "DPO", LOW): (0.6, 0.8, 0.9),
    ("a", "DPO", HIGH): (0.2, 0.4, 0.3),
    ("a", "CW", LOW): (0.6, 0.6, 0.5),
    ("a", "CW", HIGH): (0.7, 0.7, 0.8),
    ("b", "start", ()): (0.5, 0.5, 0.5),
    ("b", "DPO", LOW): (0.3, 0.3, 0.3),
    ("b", "DPO", HIGH): (0.1, 0.1, 0.1),
    ("b", "CW", LOW): (0.2, 0.2, 0.2),
    ("b", "CW", HIGH): (0.4, 0.4, 0.4),
}


def results(*, tuning: int | None = 9, lower: tuple[str, ...] = ("loss",), **changes: Any) -> Results:
    grid = Grid(
        recipe="r.yaml",
        methods={"DPO": {}, "CW": {}},
        settings={"lr": [0.1, 0.2]},
        worlds={"a": {}, "b": {}},
        seeds=[0, 1],
        tuning_seed=tuning,
        lower_is_better=list(lower),
        **{"target": "win", **changes},
    )
    found: dict[Cell, Mapping[str, float]] = {}
    for (world, method, setting), values in WINS.items():
        for seed, value in zip((0, 1, 9), values, strict=True):
            if seed != 9 or tuning is not None:
                found[Cell(world, seed, method, setting)] = {"win": value, "loss": 1 - value}
    return Results(grid, found)


def test_a_score_is_the_mean_over_reported_seeds_with_its_standard_error() -> None:
    score = results().score("a", "DPO", LOW, "win")
    assert score == pytest.approx((0.7, 0.1, 2))  # sd of .6 and .8 is .1414, over sqrt(2)
    assert f"{score}" == "0.700 ± 0.100"
    assert f"{Score(0.25, None, 1):+}" == "+0.250"


def test_the_setting_is_chosen_on_the_tuning_seed_and_reported_on_the_others() -> None:
    assert results().choice("a", "CW") == (HIGH, WINS["a", "CW", HIGH][2], True)
    assert results().choice("a", "DPO") == (LOW, WINS["a", "DPO", LOW][2], True)
    chosen = results(tuning=None).choice("a", "CW")
    assert (chosen.setting, chosen.tuned) == (HIGH, False)
    assert chosen.value == pytest.approx(0.7)


def test_a_setting_is_chosen_by_the_measure_that_is_asked_for() -> None:
    assert results().choice("a", "CW", "loss").setting == HIGH
    assert results(lower=()).choice("a", "CW", "loss").setting == LOW


def test_less_is_better_where_the_grid_says_so() -> None:
    by_loss = results(tuning=None, target="loss")
    assert by_loss.choice("a", "DPO").setting == LOW
    assert by_loss.worst("a", "DPO", "loss").mean == pytest.approx(0.7)
    assert by_loss.regret("a", "DPO", HIGH, "loss") == pytest.approx(0.4)
    assert by_loss.difference("a", ("CW", LOW), ("DPO", LOW), "loss").mean == pytest.approx(-0.1)


def test_differences_are_taken_within_each_seed() -> None:
    gap = results().difference("a", ("CW", HIGH), ("DPO", LOW), "win")
    assert gap == pytest.approx((0.0, 0.1, 2))  # .1 and -.1


def test_worst_and_middle_settings() -> None:
    assert results().worst("a", "DPO", "win").mean == pytest.approx(0.3)
    assert results().middle("a", "DPO", "win").mean == pytest.approx(0.7)


def test_regret_is_what_the_best_method_of_the_same_setting_has_more() -> None:
    found = results()
    assert found.regret("a", "CW", LOW, "win") == pytest.approx(0.1)
    assert found.regret("a", "CW", HIGH, "win") == pytest.approx(0)
    assert found.worst_regret("DPO", "win") == pytest.approx(0.4)
    assert found.worst_regret("CW", "win") == pytest.approx(0.1)
    assert found.worst_regret("CW", "win", ["b"]) == pytest.approx(0.1)


def test_the_report_shows_each_mean_with_its_error() -> None:
    table = comparison_table(summary(results(), title="t"))
    assert table is not None
    assert [column.label for column in table.columns][:2] == ["a: win, best", "a: win, worst"]
    assert {name: cells[0].text for name, cells in table.rows} == {"DPO": "0.700 ± 0.100", "CW": "0.700 ± 0.000"}


def test_markdown_has_every_world_and_says_how_settings_were_chosen() -> None:
    text = markdown(results(baseline="DPO"))
    assert "| CW | lr 0.2 | 0.700 ± 0.000 | 0.300 ± 0.000 | +0.000 ± 0.100 |" in text
    assert "| DPO | 0.700 ± 0.100 | 0.300 ± 0.100 | 0.300 ± 0.100 |" in text
    assert "chosen on seed 9, which is not reported" in text
    assert "| CW | 0.100 |" in text
    assert "the best on the reported seeds" in markdown(results(tuning=None))


def test_settings_that_are_equal_are_not_called_the_best() -> None:
    text = markdown(results())
    assert "equal" not in text
    assert "no difference" not in text
    equal = results()
    equal._tuning["b", "CW", HIGH] = equal._tuning["b", "CW", LOW]
    assert "b: all settings of CW are equal in win, and the first of them is shown." in markdown(equal)
    for key, values in equal._found.items():
        equal._found[key] = {seed: {"win": 0.0, "loss": 0.0} for seed in values}
    said = "a: no difference. win is 0.000 for every method and setting, so that none is the best."
    assert said in markdown(equal)
    assert said in summary(equal, title="t")["legend"]


def test_one_seed_has_no_standard_errors() -> None:
    assert "Means over 2 seeds with their standard errors" in markdown(results())
    one = results()
    one.grid = dataclasses.replace(one.grid, seeds=[0])
    text = markdown(one)
    assert "Values of one seed, which have no standard errors" in text
    assert "Means over" not in text


def test_runs_that_are_not_done_are_left_out(tmp_path: Path) -> None:
    grid = results().grid
    assert Results.read(grid, tmp_path).methods("a") == []
    assert markdown(Results.read(grid, tmp_path)).startswith("\nMeans") is False


@pytest.mark.parametrize("tuning", [9, None])
def test_results_are_the_same_after_a_file(tmp_path: Path, tuning: int | None) -> None:
    before = results(tuning=tuning)
    before.save(tmp_path / "comparison.json")
    after = Results.load(tmp_path / "comparison.json")
    assert markdown(after) == markdown(before)
    assert summary(after, title="t") == summary(before, title="t")


def test_a_target_that_is_not_measured_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="Write one of: win, loss"):
        results(target="exact")
