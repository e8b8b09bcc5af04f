"""The report of a run that is training, served to the browsers of this machine alone."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cwdpo.errors import ConfigError, UserError
from cwdpo.records import RunDirectory
from cwdpo.report.examples import example_files
from cwdpo.report.page import render_report

ADDRESS = "127.0.0.1"
DEFAULT_PORT = 8765
_PORTS_TO_TRY = 50
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})


class LivePage:
    """The page about some runs, drawn again when their files have changed."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = tuple(runs)
        self._lock = threading.Lock()
        self._drawn: tuple[str, bytes] | None = None
        self._seen: set[Path] = set()

    @property
    def version(self) -> str:
        """A text that changes whenever a file that the page is drawn from changes."""
        digest = hashlib.sha256()
        for path in _files_of(self._runs):
            with contextlib.suppress(OSError):
                found = path.stat()
                digest.update(f"{path}\0{found.st_mtime_ns}\0{found.st_size}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def content(self) -> bytes:
        """The page as it is now; an error is raised only where no page was drawn before."""
        with self._lock:
            version = self.version  # before reading: what changes while it is drawn is a newer version
            there = {run for run in self._runs if run.exists()}
            gone = self._seen - there  # a run that was taken away leaves its last page
            self._seen |= there
            if self._drawn is None or (self._drawn[0] != version and not gone):
                try:
                    self._drawn = version, render_report(self._runs, following=version).encode()
                except (OSError, UserError):
                    if self._drawn is None:
                        raise
            return self._drawn[1]


class PageServer(ThreadingHTTPServer):
    """Serves one page and its version, nothing else."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"

    def __init__(self, port: int, page: LivePage) -> None:
        self.page = page
        super().__init__((ADDRESS, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: browsers leave while they are being answered."""


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "cwdpo", ""
    timeout = 10

    def do_GET(self) -> None:
        if not is_local(self.headers.get_all("Host") or []):
            self._send(HTTPStatus.FORBIDDEN, b"This page is served to this machine alone.\n", "text/plain")
        elif self.path == "/version":
            self._send(HTTPStatus.OK, self.server.page.version.encode(), "text/plain")
        elif self.path == "/":
            try:
                self._send(HTTPStatus.OK, self.server.page.content(), "text/html")
            except (OSError, UserError) as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode(errors="replace"), "text/plain")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"There is nothing here but the report at /.\n", "text/plain")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal belongs to the user."""


def open_server(runs: Sequence[Path], port: int | None) -> PageServer:
    """Make the server of a live page of runs, which may still be empty; ``serve_forever`` starts it.

    Without a port it takes the first free one from :data:`DEFAULT_PORT` on; a ConfigError where there is none to take,
    a UserError for a run that is not a directory, or holds something that cannot be shown.
    """
    page = LivePage(runs)
    page.content()
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TO_TRY) if port is None else (port,):
        with contextlib.suppress(OSError):
            return PageServer(candidate, page)
    if port is None:
        raise ConfigError(
            f"none of the ports {DEFAULT_PORT} to {DEFAULT_PORT + _PORTS_TO_TRY - 1} is free. Give one with --port."
        )
    raise ConfigError(f"port {port} cannot be opened. Give another --port, or leave it out to take a free one.")


def is_local(hosts: Sequence[str]) -> bool:
    """Whether a request names this machine, once: another name that leads here is an attack (DNS rebinding).

    Example:
        >>> is_local(["localhost:8765"]), is_local(["[::1]"]), is_local(["evil.example:8765"]), is_local([])
        (True, True, False, False)
    """
    if len(hosts) != 1:
        return False
    name, colon, port = hosts[0].rpartition(":") if not hosts[0].endswith("]") else (hosts[0], "", "")
    return (name.lower() if colon else hosts[0].lower()) in _NAMES and (not colon or port.isdigit())


def _files_of(runs: Sequence[Path]) -> Iterator[Path]:
    """Every file that the page of these runs is drawn from, pictures excepted."""
    for root in runs:
        children: list[Path] = []
        with contextlib.suppress(OSError):
            children = [child for child in sorted(root.iterdir()) if child.is_dir()]
        for run in map(RunDirectory, (root, *children)):
            yield from (run.metrics, run.probes, run.findings, run.summary, run.recipe, *run.evaluations())
            yield from example_files(run.root)
