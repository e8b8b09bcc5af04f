"""Rows read as questions: which kind each is, and what is right."""

import json
from pathlib import Path
from typing import Any

import pytest

from cwdpo.errors import DataError
from cwdpo.evaluation.questions import Question, read_questions


def questions(path: Path, *rows: dict[str, Any], **options: Any) -> list[Question]:
    file = path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"What {i}?", "chosen": "A dog."} | row) + "\n" for i, row in enumerate(rows))
    )
    return read_questions(file, **options)


def test_right_answers_are_of_the_row_and_of_its_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "What?"}, {"prompt": "What?", "chosen": "A puppy.", "references": ["Hound", "A puppy."]}, {}]
    found = questions(tmp_path, *rows)
    assert [question.references for question in found] == [
        ("A dog.", "A puppy."),
        ("A puppy.", "A dog.", "Hound"),
        ("A dog.",),
    ]


def test_kinds_of_rows(tmp_path: Path) -> None:
    listed = {"prompt": "Which?\nA. a cat\nB. a dog", "chosen": "B"}
    found = questions(
        tmp_path,
        {"chosen": "Yes, it is."},
        {"chosen": "no"},
        {"options": ["a cat", "the dog"]},
        {"choices": ["yes", "no"], "chosen": "no"},
        listed,
        listed | {"chosen": "a cat"},
        listed | {"chosen": "a horse"},
        {"objects": ["dog"]},
    )
    assert [question.yes for question in found] == [True, False, *[None] * 6]
    assert [question.right_option for question in found] == [None, None, 1, 1, 1, 0, None, None]
    assert [question.is_open for question in found] == [False] * 6 + [True] * 2
    assert [question.scored_options for question in found[2:7]] == [
        ("a cat", "the dog"),
        ("yes", "no"),
        ("A", "B"),
        ("a cat", "a dog"),
        (),
    ]
    assert found[-1].objects == ("dog",)
    assert found[0].objects is None


def test_a_sample_is_seeded_and_keeps_its_order(tmp_path: Path) -> None:
    rows = [{"id": str(i)} for i in range(20)]
    one, again, other = (questions(tmp_path, *rows, num_rows=6, seed=seed) for seed in (0, 0, 1))
    ids = [int(question.row.id) for question in one]
    assert ids == sorted(ids)
    assert len(ids) == 6
    assert one == again != other
    assert len(questions(tmp_path, *rows, num_rows=50)) == 20


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": None}, r"rows.jsonl:1: .*chosen"),
        (
            {"options": ["a cat", "a bird"]},
            r"rows.jsonl:1: the chosen answer 'A dog.' is not one of the row's 2 options",
        ),
        ({"options": ["a dog"]}, "two options or more"),
        ({"options": ["a dog", "b"], "choices": ["a dog", "b"]}, "both `options` and `choices`"),
        ({"options": "a dog"}, "`options` must be a list of texts"),
        ({"references": ["a", 3]}, "`references` must be a list of texts"),
        ({"objects": [""]}, "`objects` must be a list of texts"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        questions(tmp_path, row)
