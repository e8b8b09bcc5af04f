"""Right answers do not become negatives."""

import dataclasses

import pytest
from PIL import Image

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.negatives.filtering import RightAnswers, Rules
from cwdpo.negatives.verify import EndpointJudge, SameWords, load_judge, verify


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


def test_what_the_judge_is_not_sure_of_is_no_negative() -> None:
    assert reasons(["one", "two", "three"], judge=lambda rows, answers: [None, True, False]) == [
        "not_judged",
        "judged_right",
        None,
    ]


def test_a_judge_may_ask_for_all_right_answers() -> None:
    assert SameWords()(ROWS[:1] * 2, ["circle, red", "disc: red"]) == [False, True]  # of the row alone
    assert reasons(["circle, red", "disc, blue"], judge=SameWords()) == ["judged_right", None]
    known = [Row(prompt=ROWS[0].prompt, chosen="red circle that is big", images=ROWS[0].images)]
    found = verify(
        ROWS[:1],
        [[Generated("big circle, red", True), Generated("big circle", True)]],
        right_answers=RightAnswers(ROWS, also=known),
        judge=SameWords(),
    )
    assert found == [["judged_right", None]]


def test_paraphrases_and_other_rows_are_right_too() -> None:
    one = dataclasses.replace(ROWS[0], longer="a red disc on white", shorter="a disc")
    twin = dataclasses.replace(ROWS[1], longer="a red circle on white", shorter="")
    elsewhere = [row("a red round thing"), row("a red round hat", colour="blue")]
    right = RightAnswers([one, twin], also=elsewhere)
    assert right(one) == [
        "A red disc.",
        "a red disc on white",
        "a disc",
        "a red circle",
        "a red circle on white",
        "a red round thing",
    ]
    assert right(twin)[:2] == ["a red circle", "a red circle on white"]
    assert sorted(right(twin)) == sorted(right(one))
    # a row that is not among them has its own
    assert RightAnswers([])(one) == ["A red disc.", "a red disc on white", "a disc"]


def test_pictures_of_one_colour_and_of_different_shapes_are_different_questions() -> None:
    wide, tall = (
        dataclasses.replace(ROWS[0], chosen=name, images=(Image.new("RGB", size, "red"),))
        for name, size in {"wide": (6, 2), "tall": (2, 6)}.items()
    )
    assert RightAnswers([wide, tall])(wide) == ["wide"]


def test_loading_a_judge() -> None:
    assert isinstance(load_judge("same_words"), SameWords)
    served = load_judge("http://127.0.0.1:8000/v1#some/model:8b")
    assert isinstance(served, EndpointJudge)
    assert (served.endpoint.url, served.endpoint.model) == ("http://127.0.0.1:8000/v1", "some/model:8b")
    assert load_judge("operator:eq")([], []) is True
    for name, message in (
        ("no_such_module:f", "cannot be imported"),
        ("math:f", "cannot be imported"),
        ("math:pi", "float"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_judge(name)
