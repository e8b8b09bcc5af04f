"""The server of a page that is followed: what it serves, to whom, and when it draws again."""

import http.client
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report.synthetic import stage1, write_examples, write_lines

from cwdpo.errors import ConfigError, UserError
from cwdpo.report.live import DEFAULT_PORT, LivePage, PageServer, is_local, open_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "mine").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with PageServer(0, LivePage([tmp_path / "mine"])) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def ask(server: PageServer, path: str, *, host: str | None = "localhost", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.headers["Access-Control-Allow-Origin"] is None
    connection.close()
    return answer.status, text


def test_a_run_without_a_line_is_waited_for(server: PageServer, tmp_path: Path) -> None:
    status, waiting = ask(server, "/")
    assert status == 200
    assert "Waiting for <bdi>mine</bdi> to log its first step." in waiting
    _, before = ask(server, "/version")
    assert f'data-version="{before}"' in waiting
    write_lines(tmp_path / "mine/metrics.jsonl", stage1(10, random.Random(0)))
    _, after = ask(server, "/version")
    assert after != before
    _, page = ask(server, "/")
    assert "mine trained 10 steps" in page
    assert f'data-version="{after}"' in page
    assert "connect-src &#39;self&#39;" in page


def test_every_file_of_a_run_makes_another_version(tmp_path: Path) -> None:
    write_lines(tmp_path / "sft/metrics.jsonl", stage1(10, random.Random(0)))
    page = LivePage([tmp_path])
    seen = [page.version]
    for name in ("probes.jsonl", "findings.json", "summary.json", "recipe.yaml"):
        (tmp_path / "sft" / name).write_text("{}\n")
        seen.append(page.version)
    write_examples(tmp_path / "sft")
    seen.append(page.version)
    assert len(set(seen)) == 6
    (tmp_path / "sft/report.html").write_text("x")  # what we write ourselves is no news
    assert page.version == seen[-1]


def test_a_page_is_drawn_once_a_version(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", stage1(10, random.Random(0)))
    page = LivePage([tmp_path])
    assert page.content() is page.content()


def test_a_run_that_is_taken_away_leaves_its_last_page(tmp_path: Path) -> None:
    write_lines(tmp_path / "mine/metrics.jsonl", stage1(10, random.Random(0)))
    page = LivePage([tmp_path / "mine"])
    before = page.content()
    (tmp_path / "mine/metrics.jsonl").unlink()
    (tmp_path / "mine").rmdir()
    assert page.content() == before


@pytest.mark.parametrize(
    "path",
    ["/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/metrics.jsonl", "/?x", "/version/", "*"],
)
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    status, text = ask(server, path)
    assert (status, text) == (404, "There is nothing here but the report at /.\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "HEAD", "DELETE", "OPTIONS"])
def test_only_get_is_answered(server: PageServer, method: str) -> None:
    assert ask(server, "/", method=method)[0] == 501


@pytest.mark.parametrize("host", [None, "", "evil.example", "localhost.evil.example:80", "127.0.0.1.evil.example"])
def test_other_names_of_this_machine_are_refused(server: PageServer, host: str | None) -> None:
    assert ask(server, "/", host=host) == (403, "This page is served to this machine alone.\n")
    assert ask(server, "/version", host=host)[0] == 403


@pytest.mark.parametrize(
    ("hosts", "local"),
    [
        (["127.0.0.1"], True),
        (["127.0.0.1:8765"], True),
        (["LOCALHOST:1"], True),
        (["[::1]:8765"], True),
        (["localhost:"], False),
        (["localhost:x"], False),
        (["localhost", "localhost"], False),
        (["evil:8765@localhost:1"], False),
    ],
)
def test_names_of_this_machine(hosts: list[str], local: bool) -> None:
    assert is_local(hosts) is local


def test_only_this_machine_can_reach_it(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_passed_over_unless_it_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with open_server([tmp_path / "mine"], None) as first, open_server([tmp_path / "mine"], None) as second:
        ports = [first.server_address[1], second.server_address[1]]
        assert DEFAULT_PORT <= ports[0] < ports[1]
        with pytest.raises(ConfigError, match=rf"port {ports[0]} cannot be opened\. Give another --port"):
            open_server([tmp_path / "mine"], ports[0])


def test_a_run_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    page = LivePage([tmp_path / "runs" / "mine"])
    first = page.content().decode()
    assert "Waiting for <bdi>mine</bdi>" in first
    write_lines(tmp_path / "runs/mine/metrics.jsonl", [{"stage": "stage1", "step": 1, "loss": 0.5}])
    assert page.content().decode() != first


def test_what_is_no_directory_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file, and a run is needed"):
        open_server([tmp_path / "file"], None)
