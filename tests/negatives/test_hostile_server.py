"""Whatever a server sends: an answer in time, or an EndpointError of one line; never a secret, never a traceback."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cwdpo.negatives import server as client
from cwdpo.negatives.server import Endpoint, EndpointError

ASK = [{"role": "user", "content": "hello"}]
KEY = "sk-geheim-geheim-geheim"


@contextmanager
def speaking(speak: Callable[[socket.socket, bytes], object]) -> Iterator[str]:
    """A server that reads a request, says what ``speak`` says, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                head = connection.recv(65536)
                speak(connection, head)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.2)
                while connection.recv(65536):  # what was sent is not lost by hanging up
                    pass
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.close()


def saying(body: bytes, *, head: bytes = b"HTTP/1.1 200 OK\r\n") -> Callable[[socket.socket, bytes], object]:
    length = f"Content-Length: {len(body)}\r\n\r\n".encode()
    return lambda connection, _: connection.sendall(head + length + body)


def endpoint(url: str, **settings: Any) -> Endpoint:
    return Endpoint(url, **{"model": "m", "retries": 0, "api_key": KEY, "sleep": lambda _: None} | settings)


def failure(url: str, **settings: Any) -> str:
    with pytest.raises(EndpointError) as raised:
        endpoint(url, **settings).chat(ASK)
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 600
    assert "geheim" not in text
    return text


def drip(connection: socket.socket, text: bytes) -> None:
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"])
def test_an_answer_that_drips_has_a_deadline(start: bytes) -> None:
    def speak(connection: socket.socket, _: bytes) -> None:
        connection.sendall(start)
        drip(connection, b"a" * 200)

    with speaking(speak) as url:
        began = time.monotonic()
        assert "no whole answer within 0.3 seconds" in failure(url, deadline=0.3)
        assert time.monotonic() - began < 2


def test_a_body_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_LARGEST_ANSWER", 2**18)

    def speak(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b" " * 65536)

    with speaking(speak) as url:
        assert "it has more than 262,144 bytes" in failure(url)


def choices(content: object = "yes", **more: object) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content}}], **more}


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b"3",
        b'"choices"',
        b"{}",
        b'{"choices": 3}',
        b'{"choices": {"0": 1}}',
        b'{"choices": [null]}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": [{"message": {"content": ["a"]}}]}',
        b'{"choices": [{"message": {"content": 1e999}}]}',
        b"\xff\xfe\x00",
        b"1" * 5000,
        b"",
    ],
)
def test_json_of_any_form_is_met(body: bytes) -> None:
    with speaking(saying(body)) as url:
        assert "its answer made no sense" in failure(url)


@pytest.mark.parametrize("used", [{"prompt_tokens": 1e999}, {"prompt_tokens": -3}, {"prompt_tokens": "x"}, [1], "x", 3])
def test_numbers_of_tokens_that_are_none_do_not_count(used: object) -> None:
    with speaking(saying(json.dumps(choices(usage=used)).encode())) as url:
        one = endpoint(url)
        assert one.chat(ASK)[0].text == "yes"
        assert one.usage.prompt_tokens == 0


def test_text_that_no_file_can_hold_is_replaced() -> None:
    with speaking(saying(b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')) as url:
        assert endpoint(url).chat(ASK)[0].text == "a\ufffdb"


def test_no_more_answers_than_asked_for() -> None:
    with speaking(saying(json.dumps({"choices": choices()["choices"] * 9}).encode())) as url:
        assert len(endpoint(url).chat(ASK, n=2)) == 2


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"401 No", b"404 None", b"500 Broken"])
@pytest.mark.parametrize("escaped", [False, True])
def test_headers_that_come_back_are_without_the_key(status: bytes, escaped: bool) -> None:
    def speak(connection: socket.socket, head: bytes) -> None:
        echo = json.dumps(choices(head.decode()))
        echo = echo.replace("geheim", "\\u0067eheim") if escaped else echo
        saying(echo.encode(), head=b"HTTP/1.1 " + status + b"\r\n")(connection, head)

    with speaking(speak) as url:
        if status.startswith(b"200"):
            said = endpoint(url).chat(ASK)[0].text
            assert "Bearer <secret>" in said
            assert "geheim" not in said
        elif not escaped:
            failure(url)


def test_a_header_that_breaks_the_protocol_is_quoted_without_the_key() -> None:
    with speaking(lambda connection, _: connection.sendall(f"HTTP/1.1 200 OK\r\nbad {KEY}\r\n\r\n".encode())) as url:
        failure(url)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "data", "id", "finish_reason"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def any_server() -> Iterator[tuple[Endpoint, list[Callable[[socket.socket, bytes], object]]]]:
    """An endpoint, and what its server says: the last of a list."""
    script: list[Callable[[socket.socket, bytes], object]] = []
    with speaking(lambda connection, head: script[-1](connection, head)) as url:
        yield endpoint(url, give_up_after=10**9), script


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(body=JSON | st.binary(max_size=40), status=st.sampled_from([200, 200, 200, 400, 404, 429, 500]))
def test_any_answer_is_an_answer_or_one_line(any_server: Any, body: object, status: int) -> None:
    one, script = any_server
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    script.append(saying(content, head=f"HTTP/1.1 {status} So\r\n".encode()))
    for ask in (lambda: one.chat(ASK), one.models):
        try:
            ask()
        except EndpointError as error:
            said = str(error)
        else:
            said = ""
        assert "\n" not in said
