"""The client against a server that has a bad day. Nothing leaves this machine."""

import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from support.chat_server import ChatServer, serving

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import UserError
from cwdpo.negatives.server import NEUTRAL, Endpoint, EndpointError, messages_of

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(lambda body: [f"answer {i}" for i in range(body["n"])]) as state:
        yield state


def client(server: ChatServer, **settings: Any) -> tuple[Endpoint, list[float]]:
    waits: list[float] = []
    return Endpoint(server.url, **{"timeout": 5.0, "sleep": waits.append} | settings), waits


def test_an_answer_and_what_it_cost(server: ChatServer) -> None:
    endpoint, waits = client(server)
    assert [reply.text for reply in endpoint.chat(ASK, n=2, seed=3)] == ["answer 0", "answer 1"]
    (body,) = server.chats()
    assert (body["model"], body["n"], body["seed"], body["messages"]) == ("tiny", 2, 3, ASK)
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens, endpoint.usage.retries) == (10, 3, 0)
    assert endpoint.usage.cost(prompt_price=1.0, completion_price=2.0) == pytest.approx(16e-6)
    assert waits == []


@pytest.mark.parametrize("trouble", [500, 503, "broken", "empty", "hangup"])
def test_trouble_is_tried_again_with_longer_and_longer_waits(server: ChatServer, trouble: Any) -> None:
    endpoint, waits = client(server, model="tiny", backoff=2.0)
    server.script = [trouble] * 3
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert waits == [2.0, 4.0, 8.0]
    assert endpoint.usage.retries == 3


def test_a_full_queue_is_left_alone_for_as_long_as_it_asks(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [429, 429]
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert waits == [7.0, 7.0]


def test_a_slow_answer_times_out_and_is_asked_for_again(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny", timeout=0.2)
    server.script, server.pause = ["slow"], 0.6
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert len(waits) == 1


def test_after_all_retries_the_last_trouble_is_told(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny", retries=2)
    server.script = [500, "broken", 503]
    with pytest.raises(EndpointError, match=r"failed 3 times; the last time: HTTP 503"):
        endpoint.chat(ASK)
    assert len(waits) == 2


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (400, "as told")])
def test_a_refusal_is_not_tried_again(server: ChatServer, status: int, advice: str) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [status]
    with pytest.raises(EndpointError, match=advice):
        endpoint.chat(ASK)
    assert waits == []


@pytest.mark.parametrize(
    ("status", "settings", "wrong"),
    [
        (401, {"api_key": "k"}, "The key in OPENAI_API_KEY is wrong"),
        (403, {}, "OPENAI_API_KEY is not set"),
        (404, {}, "The URL is wrong"),
        (None, {"model": "tinny"}, "The model's name is wrong: the server has no tinny"),
    ],
)
def test_what_no_row_can_mend_is_given_up_at_once(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int | None, settings: Any, wrong: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint, _ = client(server, **{"model": "tiny", "concurrency": 2} | settings)
    server.script = [] if status is None else [status] * 500
    with pytest.raises(EndpointError, match=wrong) as caught:
        list(endpoint.map(lambda _: endpoint.chat(ASK), range(500)))
    assert len(server.chats()) <= 4
    assert "\n" not in str(caught.value)


def test_403_after_answers_is_about_one_request(server: ChatServer) -> None:
    """Clouds refuse single prompts with it; sixteen in a row are the key all the same."""
    endpoint, _ = client(server, model="tiny", concurrency=1)
    server.script = ["ok", 403, "ok"]
    assert [n for n, found in endpoint.map(lambda _: endpoint.chat(ASK), range(3)) if found is None] == [1]
    server.script = ["ok"] + [403] * 500
    with pytest.raises(EndpointError, match="number 16 in a row"):
        list(endpoint.map(lambda _: endpoint.chat(ASK), range(500)))


def test_neutral_settings_are_sent_and_left_out_where_they_are_unknown(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, _ = client(server, model="tiny")
    endpoint.chat(ASK)
    endpoint.chat(ASK, neutral=True)
    without, with_them = server.chats()
    assert not NEUTRAL.keys() & without.keys()
    assert {name: with_them[name] for name in NEUTRAL} == {
        "top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0
    }  # fmt: skip
    server.unknown, server.requests[:] = ["top_k", "min_p"], []
    assert [endpoint.chat(ASK, neutral=True)[0].text for _ in range(3)] == ["answer 0"] * 3
    assert [sorted(NEUTRAL.keys() & body.keys()) for body in server.chats()] == [
        sorted(NEUTRAL),
        sorted(NEUTRAL.keys() - {"top_k"}),
        *[["frequency_penalty", "presence_penalty", "repetition_penalty"]] * 3,
    ]
    assert caplog.text.count("does not know top_k") == caplog.text.count("does not know min_p") == 1


def test_many_at_once_leave_a_field_out_with_one_warning(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=8)
    server.unknown = ["repetition_penalty"]
    found = dict(endpoint.map(lambda _: endpoint.chat(ASK, neutral=True)[0].text, range(40)))
    assert set(found.values()) == {"answer 0"}
    assert caplog.text.count("does not know") == 1


def test_another_complaint_leaves_nothing_out(server: ChatServer) -> None:
    endpoint, _ = client(server, model="tiny")
    server.script = [400]
    with pytest.raises(EndpointError, match="as told"):
        endpoint.chat(ASK, neutral=True)
    assert len(server.chats()) == 1


def test_a_schema_is_passed_on_and_so_is_the_key(server: ChatServer) -> None:
    endpoint, _ = client(server, api_key="secret")
    endpoint.chat(ASK, schema={"type": "object"})
    form = server.chats()[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == {"type": "object"}
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_no_more_requests_at_one_time_than_asked_for(server: ChatServer) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=3)
    lock, running, most = threading.Lock(), 0, 0

    def ask(number: int) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        text = endpoint.chat(ASK, seed=number)[0].text
        with lock:
            running -= 1
        return text

    assert dict(endpoint.map(ask, range(20))) == {number: "answer 0" for number in range(20)}
    assert most == 3


def test_one_failure_is_told_and_the_others_go_on(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=1, retries=0)
    server.script = ["ok", 500, "ok"]
    assert [n for n, text in endpoint.map(lambda _: endpoint.chat(ASK)[0].text, range(3)) if text is None] == [1]
    assert "HTTP 500" in caplog.text


def test_a_dead_server_is_given_up(server: ChatServer) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=2, retries=1, give_up_after=4)
    server.script = [500] * 1000
    with pytest.raises(EndpointError, match="in a row, so no more are asked"):
        list(endpoint.map(lambda _: endpoint.chat(ASK), range(500)))
    assert len(server.requests) < 20


def test_nobody_there() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", retries=1, sleep=lambda _: None)
    with pytest.raises(EndpointError, match="ConnectError"):
        endpoint.chat(ASK)
    with pytest.raises(UserError, match="no URL"):
        Endpoint("127.0.0.1:9")


def test_a_row_becomes_messages_with_its_pixels_inside() -> None:
    image = Image.new("RGB", (3, 2), "red")
    row = Row(
        prompt=(Message("system", ("be brief",)), Message("user", ("what is ", ImageSlot(), "?"))),
        chosen="red",
        images=(image,),
    )
    system, user = messages_of(row)
    assert system == {"role": "system", "content": [{"type": "text", "text": "be brief"}]}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text"]
    head, _, data = user["content"][1]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (decoded.size, decoded.getpixel((0, 0))) == ((3, 2), (255, 0, 0))
