"""Gentle negatives from a server: what is sent, kept and dropped."""

import json

import pytest
from support.chat_server import serving

from cwdpo.data.rows import Message, Row
from cwdpo.negatives.offline_generation import PROMPT, SCHEMA, ask_gentle
from cwdpo.negatives.server import Endpoint

RIGHT = "Two red buses stand beside the old station."
ROW = Row(prompt=(Message("user", ("What is there?",)),), chosen=RIGHT)


def answer(negative: str, kind: str = "count") -> str:
    return json.dumps({"kind": kind, "from": "Two", "to": "Three", "negative": negative})


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (answer("Three red buses stand beside the old station."), None),
        ("```json\n" + answer("Three red buses stand beside the old station.")[:-1] + ",\n```", None),
        (answer("Two red buses stand beside the old station"), "right_but_for_form"),
        (answer(RIGHT), "same_as_right"),
        (answer("A stock market crash worries everyone in town today."), "not_minor"),
        (answer("Three red buses stand beside the old station.")[:70], "malformed"),
        ('{"negative": 3}', "malformed"),
        ("I cannot help with that.", "malformed"),
    ],
)
def test_replies(reply: str, reason: str | None) -> None:
    with serving(lambda body: [reply]) as server:
        asked = ask_gentle(Endpoint(server.url), ROW, seed=4)
    assert asked.reason == reason
    assert asked.negative == (None if reason else "Three red buses stand beside the old station.")
    assert asked.kind == (None if reason else "count")


def test_what_is_asked() -> None:
    with serving(lambda body: [answer("x")]) as server:
        ask_gentle(Endpoint(server.url), ROW, seed=4)
        (body,) = server.chats()
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"][0]["text"] == RIGHT
    assert body["messages"][2]["content"][0]["text"] == PROMPT
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert body["seed"] == 4
