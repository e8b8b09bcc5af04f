"""The cards at the top of the page, and which value of a table is called best."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from report.synthetic import write_demo, write_lines

from cwdpo.report.page import render_report
from cwdpo.report.runs import read_sources
from cwdpo.report.strip import Card, cards
from cwdpo.report.tables import comparison_table, verdicts


def card_of(path: Path) -> Card:
    [source] = read_sources([path], [])
    [card] = cards(source.runs, verdicts(source.runs))
    return card


def lines(*, steps: int, epochs: float) -> list[dict[str, Any]]:
    common = {"stage": "stage2", "loss": 0.5}
    return [
        {**common, "step": step, "rewards/accuracies": 0.8 + 0.02 * (step % 2), "epoch": epochs * step / steps}
        for step in range(1, steps + 1)
    ]


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    write_lines(tmp_path / "run/metrics.jsonl", lines(steps=20, epochs=0.5))
    (tmp_path / "run/recipe.yaml").write_text("stage2: {trainer: {num_train_epochs: 2}}\n")
    card = card_of(tmp_path / "run")
    assert card.status == "Training: stage 2, step 20"
    assert (card.progress.words, card.progress.total) == ("stage 2, step 20 of 80 (25%)", 80)
    (tmp_path / "run/recipe.yaml").write_text("trainer: {max_steps: 50}\n")
    assert card_of(tmp_path / "run").progress.total == 50
    (tmp_path / "run/recipe.yaml").write_text("- not a recipe\n")
    assert card_of(tmp_path / "run").progress.words == "stage 2, step 20"


def test_a_run_that_went_quiet_is_not_training(tmp_path: Path) -> None:
    write_lines(tmp_path / "run/metrics.jsonl", lines(steps=20, epochs=0.5))
    long_ago = time.time() - 3600
    os.utime(tmp_path / "run/metrics.jsonl", (long_ago, long_ago))
    assert card_of(tmp_path / "run").status == "Not finished: stage 2, step 20"


def test_a_finished_run_has_numbers_with_errors_and_no_progress(tmp_path: Path) -> None:
    write_lines(tmp_path / "run/metrics.jsonl", lines(steps=100, epochs=1))
    (tmp_path / "run/summary.json").write_text(json.dumps({"wall_seconds": 75}))
    card = card_of(tmp_path / "run")
    assert card.status == "Finished in 1 min 15 s"
    assert card.progress.words == ""
    # by hand: bends of +-0.04, 98 of them: sqrt(0.0016 / 6 / 10) = 0.0052
    assert dict(card.numbers)["Reward accuracy"] == "81.0% ± 0.5"


def test_numbers_too_small_to_matter_are_not_written_out(tmp_path: Path) -> None:
    few = [{"step": step, "stage": "stage2", "group": "chosen", "delta": -4.38e-5} for step in (0, 1, 2)]
    write_lines(tmp_path / "run/metrics.jsonl", [{"stage": "stage2", "step": i, "loss": 0.693} for i in range(1, 20)])
    write_lines(tmp_path / "run/probes.jsonl", few)
    assert dict(card_of(tmp_path / "run").numbers)["Chosen answers, change (nats/token)"] == "about 0"
    loss = [{"stage": "stage2", "step": i, "loss": 0.693 + 4e-5 * (i % 2)} for i in range(1, 20)]
    write_lines(tmp_path / "run/metrics.jsonl", loss)
    assert dict(card_of(tmp_path / "run").numbers)["Loss"] == "0.693 ± under 0.0001"


def test_findings_are_badges(tmp_path: Path) -> None:
    demo = write_demo(tmp_path)
    bad, good = card_of(demo / "dpo"), card_of(demo / "cw_dpo")
    assert ("bad", "Squeezing") in bad.badges
    assert good.badges[0] == ("good", "No problem found")
    page = render_report([demo])
    assert page.index('class="card"') < page.index('id="findings"')


@pytest.mark.parametrize(
    ("errors", "best"),
    [((0.02, 0.02), (False, False)), ((0.001, 0.002), (True, False)), ((None, None), (True, False))],
)
def test_best_must_be_beyond_the_error(errors: tuple[float | None, ...], best: tuple[bool, ...]) -> None:
    rows = [
        {"name": str(value), "x": value, "x error": error} for value, error in zip((0.56, 0.55), errors, strict=True)
    ]
    found = comparison_table({"table": {"columns": [{"key": "x", "better": "up"}], "rows": rows}})
    assert found is not None
    assert tuple(cells[0].best for _, cells in found.rows) == best


def test_what_is_as_good_as_the_best_is_tied_and_not_best_alone(tmp_path: Path) -> None:
    rows = [{"name": name, "x": x, "x error": 0.01} for name, x in (("a", 0.56), ("b", 0.55), ("c", 0.3))]
    summary = {"table": {"columns": [{"key": "x", "better": "up"}], "rows": rows}}
    found = comparison_table(summary)
    assert found is not None
    assert [(cells[0].best, cells[0].tied) for _, cells in found.rows] == [(True, True), (True, True), (False, False)]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = render_report([tmp_path])
    assert page.count(">tied<") == 2
    assert ">best<" not in page
    assert '<details class="lead" data-key="lead" open>' in page  # there is nothing else in that part


def test_a_column_without_errors_beside_one_with_them_is_not_judged() -> None:
    columns = [{"key": "x", "better": "up"}, {"key": "y", "better": "up"}]
    rows = [{"name": "a", "x": 0.9, "x error": 0.01, "y": 2}, {"name": "b", "x": 0.5, "x error": 0.01, "y": 1}]
    found = comparison_table({"table": {"columns": columns, "rows": rows}})
    assert found is not None
    assert [[cell.best for cell in cells] for _, cells in found.rows] == [[True, False], [False, False]]
