"""Judges that come with the package: what they take for right, and where they are not sure."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from support.chat_server import ChatServer, serving

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.negatives.server import Endpoint, EndpointError
from cwdpo.negatives.verify import EndpointJudge, SameWords, parse_verdict, same_words


def row(question: str = "what is it", chosen: str = "a red cube") -> Row:
    image = Image.new("RGB", (4, 4), "red")
    return Row(prompt=(Message("user", (ImageSlot(), question)),), chosen=chosen, images=(image,))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("a red cube and a blue ball", "A blue ball, and a red cube!", True),
        ("There are three dogs.", "3 dogs", True),
        ("three dogs", "four dogs", False),
        ("a red cube", "a red, red cube", False),
        ("a red cube", "not a red cube", False),
        ("a red cube", "a red cube on the left", False),
        ("the", "a", False),  # nothing but empty words: these count
        ("it is", "it is", True),
        ("yes", "no", False),
    ],
)
def test_same_words(one: str, other: str, alike: bool) -> None:
    assert same_words(one, other) == same_words(other, one) == alike
    assert SameWords()([row(chosen=one)], [other]) == [alike]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ('{"verdict": "yes"}', True),
        ('```json\n{"verdict": "No"}\n```', False),
        ('{"verdict": true}', True),
        ("yes", True),
        ("**No.**", False),
        ('{"verdict": "unsure"}', None),
        ('{"verdict": "ye', None),
        ('{"right": "yes"}', None),
        ('{"verdict": null}', None),
        ("yes and no", None),
        ("I would say so", None),
        ("", None),
    ],
)
def test_only_yes_and_no_are_verdicts(text: str, verdict: bool | None) -> None:
    assert parse_verdict(text) is verdict


def judged_answer(body: Any) -> str:
    """The answer that is asked about, as it stands in the question."""
    text = body["messages"][-1]["content"][0]["text"]
    return str(json.loads(text.partition("question: ")[2].splitlines()[0]))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """Knows that what begins with r is right, and is not sure of what begins with u."""
    verdicts = {"r": '{"verdict": "yes"}', "w": '{"verdict": "no"}', "u": "Hm."}
    with serving(lambda body: [verdicts[judged_answer(body)[0]]]) as state:
        yield state


def client(server: ChatServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, **{"timeout": 5.0, "sleep": lambda _: None} | settings)


def test_a_server_is_asked_about_each_answer_and_its_picture(server: ChatServer) -> None:
    judge = EndpointJudge(client(server, model="tiny", concurrency=3))
    answers = ["right", 'wrong "quoted"', "unclear", "right\nagain"] * 3
    assert judge([row()] * 12, answers) == [True, False, None, True] * 3
    for body in server.chats():
        picture, right, question = body["messages"]
        assert [part["type"] for part in picture["content"]] == ["image_url", "text"]
        assert right == {"role": "assistant", "content": [{"type": "text", "text": "a red cube"}]}
        assert "Other right answers" not in question["content"][0]["text"]
        assert body["temperature"] == 0
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["verdict"]["enum"] == ["yes", "no", "unsure"]


def test_it_is_given_other_right_answers(server: ChatServer) -> None:
    judge = EndpointJudge(client(server)).knowing(lambda one: [one.chosen, "a cube, red", "red"])
    judge([row()], ["wrong"])
    question = server.chats()[0]["messages"][-1]["content"][0]["text"]
    assert 'Other right answers are: "a cube, red", "red".\n' in question


def test_where_the_server_fails_no_answer_is_judged(server: ChatServer) -> None:
    judge = EndpointJudge(client(server, model="tiny", concurrency=1, retries=1))
    server.script = ["ok", 500, "broken", "ok", 503, "ok"]
    assert judge([row()] * 4, ["right", "right", "wrong", "wrong"]) == [True, None, False, False]
    server.script = [500] * 100
    with pytest.raises(EndpointError, match="answered for none of 2 answers"):
        judge([row()] * 2, ["right", "wrong"])
    assert judge([], []) == []


def test_a_wrong_key_ends_it_at_once(server: ChatServer) -> None:
    server.script = [401] * 500
    with pytest.raises(EndpointError, match="OPENAI_API_KEY"):
        EndpointJudge(client(server, model="tiny", concurrency=1))([row()] * 100, ["right"] * 100)
    assert len(server.chats()) <= 2
