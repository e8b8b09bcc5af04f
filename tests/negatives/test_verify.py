"""Right answers do not become negatives."""

import pytest
from PIL import Image

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.negatives.filtering import Rules
from cwdpo.negatives.verify import RightAnswers, load_judge, verify


def row(chosen: str, question: str = "what is it", colour: str = "red") -> Row:
    image = Image.new("RGB", (4, 4), colour)
    return Row(prompt=(Message("user", (ImageSlot(), question)),), chosen=chosen, images=(image,))


ROWS = [row("A red disc."), row("a red circle"), row("a square", colour="blue"), row("a car", "what else")]


def reasons(answers: list[str], **settings: object) -> list[str | None]:
    found = [[Generated(text, not text.endswith("...")) for text in answers]]
    return verify(ROWS[:1], found, right_answers=RightAnswers(ROWS), **settings)[0]  # type: ignore[arg-type]


def test_by_text() -> None:
    answers = ["A red disc.", "the Red  disc", "a red circle", "a square", "a square", "", "a red tri..."]
    assert reasons(answers) == [
        "same_as_right",
        "right_but_for_form",
        "same_as_right",  # of another row with the same prompt and picture
        None,  # right for another picture only
        "repeated",
        "empty",
        "cut",
    ]
    assert reasons(["a red disc here", "no"], rules=Rules(overlap=0.6)) == ["too_much_like_right", None]


def test_a_judge_is_asked_about_the_rest_alone() -> None:
    asked: list[tuple[str, str]] = []

    def judge(rows: object, answers: object) -> list[bool]:
        asked.extend((one.chosen, text) for one, text in zip(rows, answers, strict=True))  # type: ignore[call-overload]
        return [text.endswith("round") for _, text in asked]

    found = reasons(["A red disc.", "something round", "something flat"], judge=judge)
    assert found == ["same_as_right", "judged_right", None]
    assert asked == [("A red disc.", "something round"), ("A red disc.", "something flat")]
    with pytest.raises(ValueError, match="2 answers and gave 1"):
        reasons(["something", "else"], judge=lambda rows, answers: [True])


def test_loading_a_judge() -> None:
    assert load_judge("operator:eq")([], []) is True
    for name, told in (
        ("no_such_module:f", "cannot be imported"),
        ("math:f", "cannot be imported"),
        ("math:pi", "float"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_judge(name)
