"""Sampling from a server, and handing it adapters: against a server that keeps them as vLLM does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import ChatServer, serving

from cwdpo.data.rows import Message, Row
from cwdpo.generation import Sampling
from cwdpo.negatives.server import (
    NEUTRAL,
    Endpoint,
    EndpointError,
    RefusalError,
    ServerSampler,
    load_adapter,
    load_again,
    unload_adapter,
    unload_left_over,
)

ASK = [{"role": "user", "content": "hello"}]
ROWS = [Row(prompt=(Message("user", (f"question {n}",)),), chosen="yes") for n in range(4)]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(lambda body: [f"answer {i}" for i in range(body["n"])]) as state:
        yield state


def client(server: ChatServer, **settings: Any) -> Endpoint:
    return Endpoint(server.url, **{"timeout": 5.0, "sleep": lambda _: None} | settings)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_model.bin").write_bytes(b"one")
    return tmp_path


def commands(server: ChatServer) -> list[tuple[str, str]]:
    return [(path.split("/")[2].split("_")[0], body["lora_name"]) for path, body in server.requests if "lora" in path]


def test_sampling_from_a_server(server: ChatServer) -> None:
    sampler = ServerSampler(client(server, concurrency=2), Sampling(k=2, temperature=0.7, top_p=0.9, max_new_tokens=5))
    found = sampler.sample(ROWS, seed=2**40)
    assert [[answer.text for answer in of_row] for of_row in found] == [["answer 0", "answer 1"]] * 4
    for body in server.chats():
        assert (body["n"], body["temperature"], body["top_p"], body["max_tokens"]) == (2, 0.7, 0.9, 5)
        assert body.items() >= NEUTRAL.items()
    assert len({body["seed"] for body in server.chats()}) == 4


def test_prompts_without_an_answer_are_counted(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = client(server, model="tiny", concurrency=1, retries=0)
    server.script = ["ok", 500]
    found = ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)
    assert [len(of_row) for of_row in found] == [1, 0, 1, 1]
    assert "no answer for 1 of 4 prompts" in caplog.text
    server.script = [500] * 4
    with pytest.raises(EndpointError, match="4 of 4"):
        ServerSampler(endpoint, Sampling()).sample(ROWS, seed=0)


@pytest.mark.parametrize(("num_alike", "is_told"), [(16, True), (15, True), (14, False)])
def test_a_server_that_says_the_same_thing_k_times_is_told_of_once(
    server: ChatServer, caplog: pytest.LogCaptureFixture, num_alike: int, is_told: bool
) -> None:
    """Nine of ten prompts, once 16 were asked."""
    rows = [Row(prompt=(Message("user", (f"question {n}",)),), chosen="yes") for n in range(16)]
    varied = {f"question {n}" for n in range(num_alike, 16)}
    server.answer = lambda body: ["a", "b" if body["messages"][0]["content"][0]["text"] in varied else "a"]
    sampler = ServerSampler(client(server), Sampling(k=2))
    sampler.sample(rows[:15], seed=0)
    assert "all alike" not in caplog.text
    sampler.sample(rows[15:], seed=0)
    sampler.sample(rows, seed=0)
    assert caplog.text.count("all alike") == is_told


def test_one_answer_a_prompt_is_never_alike(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    ServerSampler(client(server), Sampling(k=1)).sample(ROWS * 8, seed=0)
    assert "all alike" not in caplog.text


def test_an_adapter_is_loaded_after_the_last_one_was_unloaded(server: ChatServer, adapter: Path) -> None:
    endpoint = client(server)
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


def test_a_name_that_is_taken_is_loaded_anew(server: ChatServer, adapter: Path) -> None:
    server.adapters["one"] = "of somebody else"
    load_adapter(client(server), "one", adapter)
    assert server.adapters["one"] != "of somebody else"
    assert commands(server) == [("load", "one"), ("unload", "one"), ("load", "one")]


def test_a_reply_that_was_lost_after_loading_does_no_harm(server: ChatServer, adapter: Path) -> None:
    endpoint = client(server)
    server.script = ["ok", "hangup"]
    load_adapter(endpoint, "one", adapter)
    load_adapter(endpoint, "two", adapter)  # its first `unload` is not answered, so that it is sent twice
    assert server.adapters.keys() == {"two"}


def test_a_restarted_server_knows_nothing(server: ChatServer, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = client(server)
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
    unload_left_over(client(server), "cwdpo-a-")
    assert server.adapters.keys() == {"cwdpo-b-1", "theirs"}


def test_advice_where_adapters_cannot_be_loaded(server: ChatServer, tmp_path: Path) -> None:
    endpoint = client(server)
    with pytest.raises(EndpointError, match=f"It must see the directory {tmp_path}"):
        load_adapter(endpoint, "one", tmp_path)
    server.script = [404]
    with pytest.raises(EndpointError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        load_adapter(endpoint, "one", tmp_path)
    assert endpoint.adapter is None


def test_an_adapter_that_stays_is_told_of(server: ChatServer, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = client(server)
    load_adapter(endpoint, "one", adapter)
    server.script = [500]
    unload_adapter(endpoint, retries=0)
    assert "the adapter one stays loaded" in caplog.text
    assert len(server.requests) == 2
