"""The client against a server that has a bad day. Nothing leaves this machine."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import pytest
from little_server import LittleServer, serving
from PIL import Image

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.errors import UserError
from cwdpo.negatives.conversation import messages_of
from cwdpo.negatives.endpoint import Endpoint, EndpointError
from cwdpo.negatives.sampling import Sampling
from cwdpo.negatives.serving import ServerSampler, swap_adapter

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def server() -> Iterator[LittleServer]:
    with serving(lambda body: [f"answer {i}" for i in range(body["n"])]) as state:
        yield state


def client(server: LittleServer, **settings: Any) -> tuple[Endpoint, list[float]]:
    waits: list[float] = []
    return Endpoint(server.url, **{"timeout": 5.0, "sleep": waits.append} | settings), waits


def test_an_answer_and_what_it_cost(server: LittleServer) -> None:
    endpoint, waits = client(server)
    assert [reply.text for reply in endpoint.chat(ASK, n=2, seed=3)] == ["answer 0", "answer 1"]
    (body,) = server.chats()
    assert (body["model"], body["n"], body["seed"], body["messages"]) == ("tiny", 2, 3, ASK)
    assert (endpoint.usage.prompt_tokens, endpoint.usage.completion_tokens, endpoint.usage.retries) == (10, 3, 0)
    assert endpoint.usage.cost(prompt_price=1.0, completion_price=2.0) == pytest.approx(16e-6)
    assert waits == []


@pytest.mark.parametrize("trouble", [500, 503, "broken", "empty", "hangup"])
def test_trouble_is_tried_again_with_longer_and_longer_waits(server: LittleServer, trouble: Any) -> None:
    endpoint, waits = client(server, model="tiny", backoff=2.0)
    server.script = [trouble] * 3
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert waits == [2.0, 4.0, 8.0]
    assert endpoint.usage.retries == 3


def test_a_full_queue_is_left_alone_for_as_long_as_it_asks(server: LittleServer) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [429, 429]
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert waits == [7.0, 7.0]


def test_a_slow_answer_times_out_and_is_asked_for_again(server: LittleServer) -> None:
    endpoint, waits = client(server, model="tiny", timeout=0.2)
    server.script, server.pause = ["slow"], 0.6
    assert endpoint.chat(ASK)[0].text == "answer 0"
    assert len(waits) == 1


def test_after_all_retries_the_last_trouble_is_told(server: LittleServer) -> None:
    endpoint, waits = client(server, model="tiny", retries=2)
    server.script = [500, "broken", 503]
    with pytest.raises(EndpointError, match=r"failed 3 times; the last time: HTTP 503"):
        endpoint.chat(ASK)
    assert len(waits) == 2


@pytest.mark.parametrize(("status", "advice"), [(401, "OPENAI_API_KEY"), (404, "/v1"), (400, "as told")])
def test_a_refusal_is_not_tried_again(server: LittleServer, status: int, advice: str) -> None:
    endpoint, waits = client(server, model="tiny")
    server.script = [status]
    with pytest.raises(EndpointError, match=advice):
        endpoint.chat(ASK)
    assert waits == []


def test_a_schema_is_passed_on_and_so_is_the_key(server: LittleServer) -> None:
    endpoint, _ = client(server, api_key="secret")
    endpoint.chat(ASK, schema={"type": "object"})
    form = server.chats()[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["schema"] == {"type": "object"}
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_no_more_requests_at_one_time_than_asked_for(server: LittleServer) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=3)
    found = dict(endpoint.map(lambda number: endpoint.chat(ASK, seed=number)[0].text, range(20)))
    assert found == {number: "answer 0" for number in range(20)}
    assert server.most_at_once == 3


def test_one_failure_is_told_and_the_others_go_on(server: LittleServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=1, retries=0)
    server.script = ["ok", 500, "ok"]
    assert [n for n, text in endpoint.map(lambda _: endpoint.chat(ASK)[0].text, range(3)) if text is None] == [1]
    assert "HTTP 500" in caplog.text


def test_a_dead_server_is_given_up(server: LittleServer) -> None:
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


ROWS = [Row(prompt=(Message("user", (f"question {n}",)),), chosen="yes") for n in range(4)]


def test_sampling_from_a_server(server: LittleServer) -> None:
    endpoint, _ = client(server, concurrency=2)
    sampler = ServerSampler(endpoint, Sampling(k=2, temperature=0.7, top_p=0.9, max_new_tokens=5))
    found = sampler.sample(ROWS, seed=2**40)
    assert [[answer.text for answer in of_row] for of_row in found] == [["answer 0", "answer 1"]] * 4
    for body in server.chats():
        assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (2, 0.7, 0.9, 5)
    assert len({body["seed"] for body in server.chats()}) == 4


def test_prompts_without_an_answer_are_counted(server: LittleServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint, _ = client(server, model="tiny", concurrency=1, retries=0)
    server.script = ["ok", 500]
    found = ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)
    assert [len(of_row) for of_row in found] == [1, 0, 1, 1]
    assert "no answer for 1 of 4 prompts" in caplog.text
    server.script = [500] * 4
    with pytest.raises(EndpointError, match="4 of 4"):
        ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)


def test_an_adapter_is_loaded_and_the_last_one_unloaded(server: LittleServer, tmp_path: Any) -> None:
    endpoint, _ = client(server)
    swap_adapter(endpoint, "cwdpo-1", tmp_path)
    swap_adapter(endpoint, "cwdpo-2", tmp_path)
    endpoint.chat(ASK)
    assert [(path, body.get("lora_name")) for path, body in server.requests[:3]] == [
        ("/v1/load_lora_adapter", "cwdpo-1"),
        ("/v1/load_lora_adapter", "cwdpo-2"),
        ("/v1/unload_lora_adapter", "cwdpo-1"),
    ]
    assert server.chats()[0]["model"] == "cwdpo-2"
