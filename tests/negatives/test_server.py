"""The client, sampling and adapters against a small server that fails on demand and keeps adapters as vLLM does."""

import base64
import io
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.chat_server import ChatServer, serving

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import UserError
from cwdpo.generation import Sampling
from cwdpo.negatives.server import (
    NEUTRAL,
    Endpoint,
    EndpointError,
    RefusalError,
    ServerSampler,
    load_adapter,
    load_again,
    messages_of,
    parse_json,
    unload_adapter,
    unload_left_over,
)

ASK = [{"role": "user", "content": "hello"}]
ROWS = [Row(prompt=(Message("user", (f"question {n}",)),), chosen="yes") for n in range(4)]


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


@pytest.mark.parametrize("text", [3, ["a", "list"]])
def test_an_answer_of_another_form_makes_no_sense(server: ChatServer, text: Any) -> None:
    endpoint, _ = client(server, model="tiny", retries=1)
    server.answer = lambda body: [text]
    with pytest.raises(
        EndpointError, match=r"failed 2 times; the last time: its answer made no sense \(AttributeError"
    ):
        endpoint.chat(ASK)


@pytest.mark.parametrize("command", [True, False])
def test_a_server_that_moved_is_no_success(server: ChatServer, command: bool) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [307]
    with pytest.raises(EndpointError, match="refused: HTTP 307"):
        endpoint.post("/load_lora_adapter", {"lora_name": "one"}) if command else endpoint.chat(ASK)
    assert waits == []


def test_a_full_queue_is_left_alone_for_as_long_as_it_asks(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [429, 429]
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert waits == [7.0, 7.0]


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        (1e6, 60, 60),  # never longer than a minute
        (-50, 0, 0),
        ("12.5", 12.5, 12.5),
        ("-3", 0, 0),
        ("soon", 1, 1),  # the first wait of its own
    ],
)
def test_retry_after_may_be_a_date(server: ChatServer, retry_after: str | float, least: float, most: float) -> None:
    if not isinstance(retry_after, str):  # seconds from now
        retry_after = formatdate(time.time() + retry_after, usegmt=True)
    endpoint, waits = client(server, model="tiny")
    server.script, server.retry_after = [429], retry_after
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert least <= waits[0] <= most


def test_a_date_soon_is_waited_for(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script, server.retry_after = [429], formatdate(time.time() + 30, usegmt=True)
    endpoint.chat(ASK)
    assert 20 < waits[0] <= 30


def test_a_slow_answer_times_out_and_is_asked_for_again(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny", timeout=0.2)
    server.script, server.pause = ["slow"], 0.6
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert len(waits) == 1


def test_after_all_retries_the_error_names_the_last_trouble(server: ChatServer) -> None:
    endpoint, waits = client(server, model="tiny", retries=2)
    server.script = [500, "broken", 503]
    with pytest.raises(EndpointError, match=r"failed 3 times; the last time: HTTP 503"):
        endpoint.chat(ASK)
    assert len(waits) == 2


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (400, "as said")])
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
def test_what_fails_for_every_row_is_given_up_at_once(
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
    with pytest.raises(EndpointError, match="as said"):
        endpoint.chat(ASK, neutral=True)
    assert len(server.chats()) == 1


def test_a_schema_is_passed_on_and_so_is_the_key(server: ChatServer) -> None:
    endpoint, _ = client(server, api_key="secret")
    endpoint.chat(ASK, schema={"type": "object"})
    form = server.chats()[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == {"type": "object"}
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_key_that_the_server_repeats_is_in_no_message(
    server: ChatServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    key = "sk-" + "0123456789" * 3
    server.script, server.complaint = [status, 500], " " * 170 + f"wrong key: {key}"  # cut after 200 characters
    endpoint, _ = client(server, model="tiny", retries=0, api_key=key)
    with pytest.raises(EndpointError, match=f"HTTP {status}") as caught:
        endpoint.chat(ASK)
    assert list(endpoint.map(lambda _: endpoint.chat(ASK), [0])) == [(0, None)]  # logged
    assert server.headers[0]["Authorization"] == f"Bearer {key}"
    for text in (str(caught.value), repr(vars(caught.value)), caplog.text):
        assert "0123" not in text


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_space_around_a_key_is_not_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"secret{end}")
    endpoint, _ = client(server, model="tiny")
    endpoint.chat(ASK)
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["sec\nret", "secr\N{LATIN SMALL LETTER E WITH ACUTE}t"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_quoted(server: ChatServer, key: str) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY has a line break") as caught:
        client(server, api_key=key)
    assert "sec" not in str(caught.value)


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


def test_more_than_twenty_connections_are_kept(server: ChatServer) -> None:
    """Twice 30 requests at one time: each connection of the first round serves the second."""
    endpoint, _ = client(server, model="tiny", concurrency=30)
    together = threading.Barrier(30)

    def answer(body: dict[str, Any]) -> list[str]:
        together.wait(timeout=30)
        return ["yes"]

    server.answer = answer
    for _ in range(2):
        found = dict(endpoint.map(lambda _: endpoint.chat(ASK)[0].text, range(30)))
        assert found == dict.fromkeys(range(30), "yes")
    assert server.connections == 30


def test_failures_in_many_threads_are_all_counted(server: ChatServer) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=16, retries=0, give_up_after=100)
    server.script = [500] * 96
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert [text for _, text in endpoint.map(lambda _: endpoint.chat(ASK), range(96))] == [None] * 96
    finally:
        sys.setswitchinterval(switch)
    assert endpoint._failures == 96


def test_one_failure_is_logged_and_the_others_go_on(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
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
    endpoint = Endpoint("http://127.0.0.1:9/v1", sleep=lambda _: None)
    with pytest.raises(EndpointError, match="ConnectError"):
        endpoint.chat(ASK)
    with pytest.raises(UserError, match="is not a URL"):
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


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_model.bin").write_bytes(b"one")
    return tmp_path


def commands(server: ChatServer) -> list[tuple[str, str]]:
    return [(path.split("/")[2].split("_")[0], body["lora_name"]) for path, body in server.requests if "lora" in path]


def test_sampling_from_a_server(server: ChatServer) -> None:
    sampler = ServerSampler(
        client(server, concurrency=2)[0], Sampling(k=2, temperature=0.7, top_p=0.9, max_new_tokens=5)
    )
    found = sampler.sample(ROWS, seed=2**40)
    assert [[answer.text for answer in of_row] for of_row in found] == [["answer 0", "answer 1"]] * 4
    for body in server.chats():
        assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (2, 0.7, 0.9, 5)
        assert body.items() >= NEUTRAL.items()
    assert len({body["seed"] for body in server.chats()}) == 4


def test_a_row_has_values_for_the_servers_template(server: ChatServer) -> None:
    rows = [ROWS[0], replace(ROWS[1], template_kwargs={"enable_thinking": False})]
    ServerSampler(client(server, concurrency=1)[0], Sampling()).sample(rows, seed=0)
    assert [body.get("chat_template_kwargs") for body in server.chats()] == [None, {"enable_thinking": False}]


def test_prompts_without_an_answer_are_counted(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=1, retries=0)
    server.script = ["ok", 500]
    found = ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)
    assert [len(of_row) for of_row in found] == [1, 0, 1, 1]
    assert "no answer for 1 of 4 prompts" in caplog.text
    server.script = [500] * 4
    with pytest.raises(EndpointError, match="4 of 4"):
        ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)


@pytest.mark.parametrize(("num_alike", "is_logged"), [(16, True), (15, True), (14, False)])
def test_a_server_that_says_the_same_thing_k_times_is_logged_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture, num_alike: int, is_logged: bool
) -> None:
    """Nine of ten prompts, once 16 were asked."""
    rows = [Row(prompt=(Message("user", (f"question {n}",)),), chosen="yes") for n in range(16)]
    varied = {f"question {n}" for n in range(num_alike, 16)}
    server.answer = lambda body: ["a", "b" if body["messages"][0]["content"][0]["text"] in varied else "a"]
    sampler = ServerSampler(client(server)[0], Sampling(k=2))
    sampler.sample(rows[:15], seed=0)
    assert "all alike" not in caplog.text
    sampler.sample(rows[15:], seed=0)
    sampler.sample(rows, seed=0)
    assert caplog.text.count("all alike") == is_logged


def test_one_answer_a_prompt_is_never_alike(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    ServerSampler(client(server)[0], Sampling(k=1)).sample(ROWS * 8, seed=0)
    assert "all alike" not in caplog.text


def test_an_adapter_is_loaded_after_the_last_one_was_unloaded(server: ChatServer, adapter: Path) -> None:
    endpoint, _ = client(server)
    load_adapter(endpoint, "one", adapter)
    load_adapter(endpoint, "two", adapter)
    endpoint.chat(ASK)
    assert commands(server) == [("load", "one"), ("unload", "one"), ("load", "two")]
    assert server.most_adapters == 1
    assert server.chats()[0]["model"] == "two"
    unload_adapter(endpoint)
    endpoint.chat(ASK)
    assert server.adapters == {}
    assert server.chats()[1]["model"] == "tiny"


def test_a_name_that_is_taken_is_loaded_again(server: ChatServer, adapter: Path) -> None:
    server.adapters["one"] = "of somebody else"
    load_adapter(client(server)[0], "one", adapter)
    assert server.adapters["one"] != "of somebody else"
    assert commands(server) == [("load", "one"), ("unload", "one"), ("load", "one")]


def test_a_reply_that_was_lost_after_loading_does_no_harm(server: ChatServer, adapter: Path) -> None:
    endpoint, _ = client(server)
    server.script = ["ok", "hangup"]
    load_adapter(endpoint, "one", adapter)
    load_adapter(endpoint, "two", adapter)  # its first `unload` is not answered, so that it is sent twice
    assert server.adapters.keys() == {"two"}


def test_a_restarted_server_knows_nothing(server: ChatServer, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server)
    load_adapter(endpoint, "one", adapter)
    server.adapters.clear()
    with pytest.raises(RefusalError, match="the server has no one"):
        ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)
    load_again(endpoint, adapter)
    load_again(endpoint, adapter)  # as another rank would
    assert len(ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)) == 4
    server.adapters.clear()
    load_adapter(endpoint, "two", adapter)
    assert server.adapters.keys() == {"two"}
    assert caplog.text == ""


def test_only_what_is_ours_is_unloaded(server: ChatServer) -> None:
    server.adapters.update({"cwdpo-a-1": "", "cwdpo-b-1": "", "theirs": ""})
    unload_left_over(client(server)[0], "cwdpo-a-")
    assert server.adapters.keys() == {"cwdpo-b-1", "theirs"}


def test_advice_where_adapters_cannot_be_loaded(server: ChatServer, tmp_path: Path) -> None:
    endpoint, _ = client(server)
    with pytest.raises(EndpointError, match=f"It must see the directory {tmp_path}"):
        load_adapter(endpoint, "one", tmp_path)
    server.script = [404]
    with pytest.raises(EndpointError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        load_adapter(endpoint, "one", tmp_path)
    assert endpoint.adapter is None


def test_an_adapter_that_stays_is_logged(server: ChatServer, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server)
    load_adapter(endpoint, "one", adapter)
    server.script = [500]
    unload_adapter(endpoint, retries=0)
    assert "the adapter one stays loaded" in caplog.text
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', {"a": 1}),
        ('{"a": "}, ,] {"}', {"a": "}, ,] {"}),
        ('Here: {"a": [1, 2, ], } Good luck!', {"a": [1, 2]}),
        ('{"a": {"b": [1', {"a": {"b": [1]}}),
        ('{"a": "one\ntwo"}', {"a": "one\ntwo"}),  # a line break that should have been written \\n
        ('{"a": "one\ntw', None),
        ('{"a": "1", "b": "cut he', None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_json_with_slips(text: str, found: Any) -> None:
    assert parse_json(text) == found
