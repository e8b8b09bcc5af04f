"""Filters over whole files, with a measure that is written down here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.rows import Row
from cwdpo.errors import UserError
from cwdpo.negatives.candidates import Candidate, drop_easy
from cwdpo.negatives.files import write_filtered
from cwdpo.negatives.filtering import Hardness, Rules

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "What?",
        "chosen": "A red car.",
        "rejected": "a bus",
        "negatives": ["A BLUE car.", "A blue car.", "a van"],
        "negative_sources": ["dataset", "on_policy", "on_policy", "dataset"],
    },
    {"prompt": "What?", "chosen": "A van.", "longer": "An old van.", "rejected": "the old van"},
]


def by_length(rows: Sequence[Row]) -> list[list[Hardness]]:
    return [[Hardness(-float(len(text)), float(len(text))) for text in row.rejected] for row in rows]


def filtered(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_filtered(folder / "rows.jsonl", folder / "out.jsonl", rules=Rules(), **options)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_right_for_another_row_repeated_but_for_form_and_sources_in_step(tmp_path: Path) -> None:
    (row,) = filtered(tmp_path, ROWS)
    assert [row["rejected"], *row["negatives"]] == ["a bus", "A BLUE car."]
    assert row["negative_sources"] == ["dataset", "on_policy"]
    assert "lbar" not in row


def test_what_was_measured_is_written(tmp_path: Path) -> None:
    (row,) = filtered(tmp_path, ROWS, measure=by_length, weigh=lambda lbar: lbar / -100)
    assert row["lbar"] == [-5.0, -11.0]
    assert row["ches"] == [5.0, 11.0]
    assert row["w_c"] == [0.05, 0.11]


def test_floor_and_ceiling_are_of_the_whole_file(tmp_path: Path) -> None:
    (row,) = filtered(tmp_path, ROWS, measure=by_length, drop_easier_than=-10.0)
    assert (row["rejected"], row["lbar"]) == ("a bus", [-5.0])
    assert "negatives" not in row
    (tmp_path / "out.jsonl").unlink()
    (row,) = filtered(tmp_path, ROWS, measure=by_length, drop_ches_above="quantile:0.1")
    assert row["ches"] == [5.0]


@pytest.mark.parametrize("rule", [-10.0, -5.0, "quantile:0.5", "quantile:0.9"])
def test_a_file_and_a_refresh_have_one_rule_for_too_easy(tmp_path: Path, rule: float | str) -> None:
    texts = ["a bus", "a van", "a lorry", "some tram", "another thing"]
    made = [Candidate(0, "", text, lbar=-float(len(text))) for text in texts]
    drop_easy(made, rule)
    rows = [{"prompt": "What?", "chosen": "A red car.", "rejected": texts[0], "negatives": texts[1:]}]
    (row,) = filtered(tmp_path, rows, measure=by_length, drop_easier_than=rule)
    kept = [candidate.text for candidate in made if candidate.reason is None]
    assert [row["rejected"], *row.get("negatives", [])] == kept


def test_nothing_left_is_reported_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no negative would be left \(2 right_but_for_form, 2 too_easy, 1 repeated\)"):
        filtered(tmp_path, ROWS, measure=by_length, drop_easier_than=-1.0)
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(UserError, match="there was none"):
        filtered(tmp_path, [{"prompt": "x", "chosen": "y"}])
