"""A phone-sized Chromium, driven by Debian's chromium-driver, where both are installed."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="needs Debian's chromium and chromium-driver"
)
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --no-proxy-server"
)
Command = Callable[..., Any]


@contextmanager
def open_browser(profile: Path) -> Iterator[Command]:
    """Send WebDriver commands to a browser with a window 360 px wide."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        session = _open_session(port, profile)
        command = _commander(f"http://127.0.0.1:{port}/session/{session}")
        yield command
        command("", method="DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=10)


def run(browser: Command, script: str) -> Any:
    return browser("/execute/sync", script=script, args=[])


def wait_until(browser: Command, condition: str) -> None:
    for _ in range(200):
        if run(browser, f"return Boolean({condition})"):
            return
        time.sleep(0.1)
    pytest.fail(f"never came true: {condition}")


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
