"""Who judges: rules, a user's function, and what a server is asked and understood to say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cwdpo.data.reading import read_rows
from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.demo.world import read_scenes, win_rate, write_world
from cwdpo.errors import ConfigError, UserError
from cwdpo.evaluation.judging.judges import (
    FunctionJudge,
    load_pair_judge,
)
from cwdpo.evaluation.judging.server import pair_messages, parse_choice
from cwdpo.evaluation.judging.verdicts import Question


def row(chosen: str = "a red cube", **more: object) -> Row:
    return Row(prompt=(Message("user", ("what is it",)),), chosen=chosen, source="rows.jsonl:3", **more)  # type: ignore[arg-type]


def verdict(judge: str, first: str, second: str, *rows: Row) -> float | None:
    rows = rows or (row(),)
    ((number, found),) = load_pair_judge(judge, rows).verdicts([Question(rows[0], first, second)])
    assert number == 0
    return found


@pytest.mark.parametrize(
    ("judge", "first", "second", "score"),
    [
        ("exact", "A red cube!", "a blue cube", 1),
        ("exact", "a blue cube", "the red cube", 0),
        ("exact", "cube red", "a blue cube", 0.5),  # both wrong
        ("exact", "a red cube", "red cube.", 0.5),  # both right
        ("same_words", "a cube that is red", "a blue cube", 1),
        ("overlap", "a red ball", "two green balls", 1),
        ("overlap", "a ball", "a red cube here", 0),
        ("overlap", "a red", "red a", 0.5),
    ],
)
def test_rules(judge: str, first: str, second: str, score: float) -> None:
    assert verdict(judge, first, second) == score
    assert verdict(judge, second, first) == 1 - score


def test_a_right_answer_of_another_row_of_the_prompt_is_right() -> None:
    assert verdict("exact", "a crimson cube", "a blue cube", row(), row("a crimson cube")) == 1


def length(row: Row, first: str, second: str) -> int:
    return len(first) - len(second)


def test_a_function_gives_a_number_whose_sign_counts() -> None:
    name = f"{__name__}:length"
    judge = FunctionJudge(name, length)
    questions = [Question(row(), "aaa", "a"), Question(row(), "a", "aaa"), Question(row(), "b", "a")]
    assert list(judge.verdicts(questions)) == [(0, 1), (1, 0), (2, 0.5)]
    assert [*FunctionJudge(name, lambda *_: np.float32(-0.1)).verdicts(questions[:1])] == [(0, 0)]
    assert judge.identity != FunctionJudge(name, lambda *_: 0).identity  # a corrected function is asked again


@pytest.mark.parametrize("given", [True, None, "A", math.nan])
def test_a_function_that_returns_something_else_is_named_with_the_row(given: object) -> None:
    judge = FunctionJudge("m:f", lambda *_: given)  # type: ignore[arg-type, return-value]
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the judge m:f returned"):
        list(judge.verdicts([Question(row(), "a", "b")]))


def test_a_function_that_fails_is_named_with_the_row() -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the judge m:f failed: ZeroDivisionError"):
        list(FunctionJudge("m:f", lambda *_: 1 / 0).verdicts([Question(row(), "a", "b")]))


def test_the_demos_checker_gives_the_demos_win_rate(tmp_path: Path) -> None:
    world = write_world(tmp_path, seed=1, train=1, eval=60)
    rows = read_rows(world.eval)
    ours, theirs = [one.rejected[0] for one in rows], [one.gentle or "" for one in rows]
    ours[::3] = [one.chosen for one in rows[::3]]
    judge = load_pair_judge("cwdpo.demo.judge:better_caption", rows)
    questions = [Question(*three) for three in zip(rows, ours, theirs, strict=True)]
    scores = [score for _, score in judge.verdicts(questions)]
    scenes = read_scenes(world.scenes)
    assert len(set(scores)) == 3
    assert np.mean(scores) == pytest.approx(win_rate(ours, theirs, [scenes[one.id] for one in rows]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "is 'best', which is not a judge. Write exact, same_words, overlap"),
        ("no_such_module:f", "cannot be imported"),
        ("math:pi", "is a float and not a function"),
    ],
)
def test_bad_names_say_what_to_write(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_pair_judge(name, [row()])


@pytest.mark.parametrize("url", ["http://me:geheim@host/v1#m", "https://host/v1?key=geheim", "http://geheim@host/v1"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as said:
        load_pair_judge(url, [row()])
    assert "geheim" not in str(said.value)


def test_a_server_gets_the_conversation_both_answers_and_the_right_ones_in_one_turn() -> None:
    pictured = Row(
        prompt=(Message("system", ("be brief",)), Message("user", (ImageSlot(), "what is it"))),
        chosen="a red cube",
        images=(Image.new("RGB", (4, 4), "red"),),
    )
    system, asked = pair_messages(Question(pictured, 'a "cube"', "a {ball}"), ["a red cube", "red"])
    assert (system["role"], asked["role"]) == ("system", "user")
    assert [part["type"] for part in asked["content"]] == ["image_url", "text", "text"]
    assert asked["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    text = asked["content"][2]["text"]
    lines = text.splitlines()
    assert "Answer A: " + json.dumps('a "cube"') in lines
    assert 'Answer B: "a {ball}"' in lines
    assert 'Known right answers, which may be worded otherwise: "a red cube", "red".' in lines
    assert "true of the image" in text
    (many,) = pair_messages(Question(row(), "x", "y"), [f"right {i}" for i in range(20)])
    assert [f'"right {i}"' in many["content"][1]["text"] for i in (0, 7, 8)] == [True, True, False]
    (plain,) = pair_messages(Question(row(), "x", "y"), [])
    assert "image" not in plain["content"][1]["text"]
    assert "right answers" not in plain["content"][1]["text"]


def test_no_second_turn_of_the_user_is_made_after_another_role() -> None:
    ending = Row(prompt=(Message("user", ("hi",)), Message("assistant", ("yes?",))), chosen="x")
    assert [one["role"] for one in pair_messages(Question(ending, "x", "y"), [])] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"verdict": "A"}', 1),
        ('```json\n{"verdict": "b"}\n```', 0),
        ("Tie", 0.5),
        ('{"verdict": "C"}', None),
        ('{"verdict": null}', None),
        ('{"winner": "A"}', None),
        ("A and B", None),
        ("", None),
    ],
)
def test_only_a_b_and_tie_are_verdicts(text: str, score: float | None) -> None:
    found = parse_choice(text)
    assert math.isnan(found) if score is None else found == score
