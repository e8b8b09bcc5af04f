"""The page in a real browser, where Debian's chromium and chromium-driver are installed."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report.synthetic import write_demo

from cwdpo.report import write_report

pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="needs Debian's chromium and chromium-driver"
)
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Send a WebDriver command to a browser with a window 360 px wide, which has the page open."""
    root = tmp_path_factory.mktemp("browser")
    page = write_report([write_demo(root / "demo", steps=30)], root / "report.html")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        session = _open_session(port, root / "profile")
        command = _commander(f"http://127.0.0.1:{port}/session/{session}")
        command("/url", url=page.as_uri())
        yield command
        command("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=10)


def _open_session(port: int, profile: Path) -> str:
    root = _commander(f"http://127.0.0.1:{port}")
    for _ in range(100):
        try:
            root("/status", method="GET")
            break
        except OSError:
            time.sleep(0.1)
    options = {
        "args": [*_FLAGS.split(), f"--user-data-dir={profile}"],
        "mobileEmulation": {"deviceMetrics": {"width": 360, "height": 800, "pixelRatio": 1}},
    }
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    return str(root("/session", capabilities={"alwaysMatch": wanted})["sessionId"])


def _commander(base: str) -> Command:
    def command(path: str, *, method: str = "POST", **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(base + path, method=method, data=data, headers=headers)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)["value"]

    return command


def run(browser: Command, script: str) -> Any:
    return browser("/execute/sync", script=script, args=[])


def column(browser: Command, table: int, position: int) -> list[str]:
    """Click a column's head, then read the names of the rows."""
    find = f"const table = document.querySelectorAll('table')[{table}];"
    run(browser, f"{find} table.tHead.rows[0].cells[{position}].querySelector('button').click()")
    names = run(browser, f"{find} return [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim())")
    return [str(name) for name in names]


def test_console_is_silent(browser: Command) -> None:
    assert browser("/se/log", type="browser") == []


def test_nothing_is_wider_than_a_phone(browser: Command) -> None:
    assert run(browser, "return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]


def test_tables_are_sorted_both_ways(browser: Command) -> None:
    assert column(browser, 0, 1) == ["DPO", "SFT", "CW-DPO"]
    assert column(browser, 0, 1) == ["CW-DPO", "SFT", "DPO"]
    assert column(browser, 0, 0) == ["CW-DPO", "DPO", "SFT"]


def test_rows_without_a_value_come_last(browser: Command) -> None:
    assert column(browser, 1, 3) == ["CW-DPO", "DPO", "SFT"]
    assert column(browser, 1, 3) == ["DPO", "CW-DPO", "SFT"]


def test_policy_blocks_a_script_that_is_not_ours(browser: Command) -> None:
    add = "const s = document.createElement('script'); s.textContent = 'window.intruder = 1'; document.body.append(s);"
    assert run(browser, f"{add} return window.intruder === undefined") is True
