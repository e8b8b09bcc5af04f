"""A client of OpenAI-compatible servers (vLLM, SGLang, a cloud) that is made for servers having a bad day."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from cwdpo.errors import UserError

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LONGEST_WAIT = 60.0


class EndpointError(UserError):
    """The server did not answer, or refused."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the server."""

    text: str
    ended: bool
    """False where it ran into ``max_tokens``."""


@dataclass(slots=True)
class Usage:
    """What was asked for so far."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def cost(self, *, prompt_price: float, completion_price: float) -> float:
        """In the prices' currency; these are per million tokens.

        Example:
            >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(prompt_price=1.0, completion_price=4.0)
            4.0
        """
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


class Endpoint:
    """One server. Safe to use from many threads."""

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 8,
        give_up_after: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Remember where it is; nothing is asked yet.

        Args:
            url: the base, such as ``http://127.0.0.1:8000/v1``.
            model: by default the first that the server names.
            api_key: by default ``OPENAI_API_KEY`` of the environment, if there is one. Never written to a file.
            timeout: seconds that one request may take.
            retries: further attempts after a request that was refused for the moment, broke off or made no sense.
            backoff: seconds before the first of them; doubled every time, unless the server says how long to wait.
            concurrency: requests at one time.
            give_up_after: requests that fail one after another, retries and all, before the server counts as dead.
            sleep: for tests.
        """
        if not url.startswith(("http://", "https://")):
            raise UserError(f"the endpoint {url!r} is no URL. Write one such as http://127.0.0.1:8000/v1.")
        self.url, self.concurrency, self.usage = url.rstrip("/"), concurrency, Usage()
        self._model, self._retries, self._backoff, self._sleep = model, retries, backoff, sleep
        self.adapter: str | None = None
        """Asked for in place of the model, once one is loaded."""

        self._give_up_after, self._failures = give_up_after, 0
        self._lock = threading.Lock()
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._client = httpx2.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})

    @property
    def model(self) -> str:
        """The model that is asked.

        Raises:
            EndpointError: none was named, and the server names none either.
        """
        if self._model is None:
            found = self._ask("GET", "/models", None, lambda body: [str(item["id"]) for item in body["data"]])
            if not found:
                raise EndpointError(f"{self.url} serves no model. Name one with --served-model.")
            self._model = found[0]
        return self._model

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Reply]:
        """Ask for ``n`` answers to a conversation.

        Args:
            messages: see :func:`cwdpo.negatives.conversation.messages_of`.
            n, temperature, top_p, max_tokens, seed: as the API names them.
            schema: a JSON schema that the server must keep the answer to.

        Raises:
            EndpointError: no answer after all retries, or a refusal that no retry would mend.
        """
        request: dict[str, Any] = {
            "model": self.adapter or self.model,
            "messages": list(messages),
            "n": n,
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
        }
        if seed is not None:
            request["seed"] = seed
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        replies: list[Reply] = self._ask("POST", "/chat/completions", request, self._replies)
        return replies

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Send a command whose answer does not matter, such as vLLM's ``/load_lora_adapter``."""
        self._ask("POST", path, body, None)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[tuple[int, _Result | None]]:
        """Call a function that asks this server for many items, a few at one time.

        Yields:
            The item's number and the result as soon as there is one; None where the server failed for this item.

        Raises:
            EndpointError: the server is dead; what was yielded before is good.
        """
        queue, running = enumerate(items), dict[Future[_Result], int]()
        self._failures = 0
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    while len(running) < self.concurrency and (following := next(queue, None)) is not None:
                        running[pool.submit(function, following[1])] = following[0]
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), self._outcome(done)
            finally:
                for future in running:
                    future.cancel()

    def _outcome(self, done: "Future[_Result]") -> _Result | None:
        try:
            return done.result()
        except EndpointError as error:
            if self._failures >= self._give_up_after:
                raise EndpointError(
                    f"{error} This was number {self._failures} in a row, so no more are asked."
                ) from error
            logger.warning("%s", error)
            return None

    def _ask(self, method: str, path: str, body: Any, read: Callable[[Any], Any] | None) -> Any:
        problem = ""
        for attempt in range(self._retries + 1):
            with self._lock:
                self.usage.requests += 1
                self.usage.retries += attempt > 0
            pause: float | None = None
            try:
                response = self._client.request(method, self.url + path, json=body)
                if response.status_code in _TRY_AGAIN:
                    problem, pause = _told(response), _retry_after(response)
                elif response.is_error:
                    raise EndpointError(f"{self.url}{path} refused: {_told(response)}.{_advice(response.status_code)}")
                else:
                    answer = None if read is None else read(response.json())
                    self._failures = 0
                    return answer
            except EndpointError:
                raise
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__} {error}".strip()
            except (ValueError, KeyError, TypeError, IndexError) as error:
                problem = f"its answer made no sense ({type(error).__name__}: {error})"
            if self._failures >= self._give_up_after:
                break
            if attempt < self._retries:
                self._sleep(min(self._backoff * 2**attempt if pause is None else pause, _LONGEST_WAIT))
        self._failures += 1
        raise EndpointError(f"{self.url}{path} failed {attempt + 1} times; the last time: {problem}.")

    def _replies(self, body: Any) -> list[Reply]:
        replies = [
            Reply((choice["message"]["content"] or "").strip(), choice.get("finish_reason") != "length")
            for choice in body["choices"]
        ]
        if not replies:
            raise ValueError("no choices")
        used = body.get("usage") or {}
        with self._lock:
            self.usage.prompt_tokens += int(used.get("prompt_tokens") or 0)
            self.usage.completion_tokens += int(used.get("completion_tokens") or 0)
        return replies


def _told(response: Any) -> str:
    return f"HTTP {response.status_code} {response.text.strip()[:200]!r}"


def _retry_after(response: Any) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _advice(status: int) -> str:
    if status in (401, 403):
        return " Put the right key into OPENAI_API_KEY."
    if status == 404:
        return " Check the URL, which usually ends in /v1, and the model's name."
    return ""
