"""No negative differs from a right answer in form alone, and no two of a prompt differ in form alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from on_policy.scripted_sampling import SAMPLING, STEPS, Record, scripted

from cwdpo.data.rows import Row
from cwdpo.negatives.filtering import normalised

Make = Callable[..., Any]


def texts(record: Record, trainer: Any) -> dict[tuple[int, int], list[str]]:
    """Of each step and row."""
    found: dict[tuple[int, int], list[str]] = {}
    for step, row, text in record.rejected(trainer):
        found.setdefault((step, row), []).append(text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"on_policy_fraction": 0}, {"on_policy_fraction": 0, "curriculum": 1.0}])
def test_a_rows_own_negative_that_is_right_is_not_taken(
    make_trainer: Make, rows: list[Row], settings: dict[str, Any]
) -> None:
    """Its own right answer in capitals, and the paraphrase; both are easier to find than the wrong answer."""
    several = [
        replace(
            row, longer=f"{row.chosen} It is so.", rejected=(row.chosen.upper(), f"{row.chosen} it is so", "A cat.")
        )
        for row in rows
    ]
    record = Record()
    trainer = record.watch(make_trainer(2, train_rows=several, **STEPS, on_policy=settings | {"per_prompt": 2}))
    trainer.train()
    assert set(map(tuple, texts(record, trainer).values())) == {("A cat.",)}


@pytest.mark.slow
def test_a_sample_and_a_rows_own_are_not_both_taken(make_trainer: Make, rows: list[Row]) -> None:
    own = [replace(row, rejected=("A blue cat.", "the BLUE cat")) for row in rows]
    record = Record()
    settings = SAMPLING | {"on_policy_fraction": 0.5, "per_prompt": 3}
    trainer = record.watch(make_trainer(2, train_rows=own, **STEPS, on_policy=settings))
    scripted(trainer, lambda row, n: ["a blue cat", "a sample"])
    trainer.train()
    for found in texts(record, trainer).values():
        assert len(found) == 2
        assert "a sample" in found


@pytest.mark.slow
def test_easy_negatives_that_fill_in_differ_too(make_trainer: Make, rows: list[Row]) -> None:
    """Those below the floor are only taken where places are left, and not beside one that they equal but for form."""
    own = [replace(row, rejected=("A blue cat.", "THE blue cat", "Ice.")) for row in rows]
    record = Record()
    settings = SAMPLING | {"on_policy_fraction": 1.0, "per_prompt": 3, "drop_easier_than": "quantile:0.5"}
    trainer = record.watch(make_trainer(2, train_rows=own, **STEPS, on_policy=settings))
    scripted(trainer, lambda row, n: ["a blue cat", f"sample {row.id}"])
    trainer.train()
    for found in texts(record, trainer).values():
        assert len(found) == len(set(map(normalised, found))) > 1


@pytest.mark.slow
def test_a_row_with_nothing_else_keeps_its_own(make_trainer: Make, rows: list[Row]) -> None:
    own = [replace(row, rejected=(row.chosen.upper(),)) for row in rows]
    record = Record()
    trainer = record.watch(make_trainer(2, train_rows=own, **STEPS, on_policy=SAMPLING | {"on_policy_fraction": 1.0}))
    scripted(trainer, lambda row, n: [])
    trainer.train()
    assert all(len(found) == 1 for found in texts(record, trainer).values())
