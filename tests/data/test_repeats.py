"""Rows that are both trained on and held out, and names that two rows share."""

from pathlib import Path

import pytest

from cwdpo.data.repeats import has_two_answers, rows_also_in, sharing_ids
from cwdpo.data.rows import ImageSlot, Message, Row


def row(question: str = "What?", image: str = "a.png", source: str = "d.jsonl:1", **more: object) -> Row:
    prompt = (Message("user", (ImageSlot(), question)),)
    given = {"chosen": "A cat.", "rejected": ("A dog.",), "images": (Path(image),), **more}
    return Row(prompt, source=source, **given)  # type: ignore[arg-type]


def test_a_row_is_in_other_rows_whatever_its_name() -> None:
    held_out = [row(id="x", source="e.jsonl:1"), row("Who?", source="e.jsonl:2")]
    assert rows_also_in(held_out, [row(id="y"), row("Where?")]) == held_out[:1]
    assert rows_also_in(held_out, []) == []


@pytest.mark.parametrize(
    "other",
    [
        row("Who?"),
        row(image="b.png"),
        row(chosen="A cow."),
        row(rejected=("A cow.",)),
        row(rejected=("A dog.", "A cow.")),
        row(gentle="A kitten."),
        row(template_kwargs={"enable_thinking": False}),
    ],
)
def test_a_row_that_differs_in_one_thing_is_another(other: Row) -> None:
    assert rows_also_in([row()], [other]) == []


def test_ids_of_rows_with_other_content() -> None:
    rows = [
        row(id="a"),
        row("Who?", id="a"),
        row(id="a"),
        row("Where?", id=""),
        row("When?", id=""),
        row("Why?", id="b"),
    ]
    assert [(later.prompt[0].parts[1], first is rows[0]) for later, first in sharing_ids(rows)] == [("Who?", True)]


def test_two_answers() -> None:
    assert has_two_answers(row())
    assert has_two_answers(row(rejected=("A cat.", "A dog.")))
    assert not has_two_answers(row(rejected=(" A cat.\n",)))
    assert not has_two_answers(row(rejected=()))
