"""A small OpenAI-compatible server on this machine, which misbehaves on demand."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Answer = Callable[[dict[str, Any]], list[str]]


class ChatServer:
    """Answers with what ``answer`` says, after the misbehaviour in ``script`` is used up, one item a request.

    Items: a status code, ``"slow"`` (seconds in ``pause``), ``"broken"`` (half an answer), ``"empty"`` (no choices),
    ``"hangup"`` or ``"ok"``.

    Adapters are kept as vLLM keeps them: a name may be loaded once, and only what is loaded can be asked or unloaded.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.script, self.pause = answer, list[Any](), 1.0
        self.complaint = "as said"
        """What an answer with a status code from the script says."""

        self.status_of_models = 200
        """Of the list of models."""

        self.retry_after = "7"
        """Header of a 429."""

        self.connections = 0
        """Opened so far."""

        self.requests: list[tuple[str, Any]] = []
        self.headers: list[Any] = []
        self.lock = threading.Lock()
        self.url = ""
        self.adapters: dict[str, str] = {}
        """By name, what its weights were when it was loaded."""
        self.most_adapters = 0
        self.unknown: list[str] = []
        """Fields that are refused as clouds refuse them, the first alone being named."""

    def chats(self) -> list[Any]:
        return [body for path, body in self.requests if path.endswith("/chat/completions")]


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"  # connections stay open, as at a real server

    def setup(self) -> None:
        super().setup()
        with self.server.state.lock:
            self.server.state.connections += 1

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        names = ["tiny", *self.server.state.adapters]
        self._send(self.server.state.status_of_models, json.dumps({"data": [{"id": name} for name in names]}))

    def do_POST(self) -> None:
        state: ChatServer = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with state.lock:
            state.requests.append((self.path, body))
            state.headers.append(dict(self.headers))
            now = state.script.pop(0) if state.script else "ok"
        self._answer(state, now, body)

    def _answer(self, state: ChatServer, now: Any, body: Any) -> None:
        if isinstance(now, int):
            self._send(now, json.dumps({"error": state.complaint}))
        elif now == "slow":
            time.sleep(state.pause)
            self.close_connection = True
        elif now == "hangup":
            self.connection.close()
            self.close_connection = True
        elif now == "broken":
            self._send(200, '{"choices": [{"mess')
        elif now == "empty":
            self._send(200, '{"choices": []}')
        elif self.path.endswith("lora_adapter"):
            with state.lock:
                self._send(*self._adapter(state, body))
        elif body["model"] not in ("tiny", *state.adapters):
            self._send(404, json.dumps({"message": f"The model `{body['model']}` does not exist.", "code": 404}))
        elif refused := [name for name in state.unknown if name in body]:
            self._send(400, json.dumps({"error": {"message": f"Unrecognized request argument: {refused[0]}"}}))
        elif "chat" in self.path:
            time.sleep(0.005)
            choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in state.answer(body)]
            self._send(200, json.dumps({"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 3}}))
        else:
            self._send(200, "Success")

    def _adapter(self, state: ChatServer, body: Any) -> tuple[int, str]:
        name = body["lora_name"]
        if self.path.endswith("unload_lora_adapter"):
            known = state.adapters.pop(name, None) is not None
            return (200, "Success") if known else (404, f"The lora adapter '{name}' cannot be found.")
        if name in state.adapters:
            return 400, f"The lora adapter '{name}' has already been loaded. To load in place, set 'load_inplace'."
        files = sorted(Path(body["lora_path"]).glob("adapter_model.*"))
        if not files:
            return 404, f"No adapter found for {body['lora_path']}"
        state.adapters[name] = hashlib.sha256(files[0].read_bytes()).hexdigest()
        state.most_adapters = max(state.most_adapters, len(state.adapters))
        return 200, "Success"

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", self.server.state.retry_after)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(answer: Answer) -> Iterator[ChatServer]:
    """A server while the block runs."""
    state = ChatServer(answer)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.state, server.daemon_threads = state, True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
