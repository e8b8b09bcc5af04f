"""A client of OpenAI-compatible servers (vLLM, SGLang, a cloud) that is made for servers having a bad day."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import httpx2

from cwdpo.errors import UserError
from cwdpo.negatives.refusals import TRY_AGAIN, EndpointError, RefusalError, refusal_of, retry_after, told
from cwdpo.negatives.replies import Reply, Usage, read_replies

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_LONGEST_WAIT = 60.0

NEUTRAL: Mapping[str, float] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sampling settings that change nothing, as vLLM and SGLang name them. What a request leaves out they take from the
checkpoint's ``generation_config.json``, and then do not sample from the model's own distribution."""


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

        self._give_up_after, self._failures, self._has_answered = give_up_after, 0, False
        self._neutral = dict(NEUTRAL)
        self._lock = threading.Lock()
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._has_key = bool(key)
        self._client = httpx2.Client(timeout=timeout, headers={"Authorization": f"Bearer {key}"} if key else {})

    @property
    def model(self) -> str:
        """The model that is asked.

        Raises:
            EndpointError: none was named, and the server names none either.
        """
        if self._model is None:
            found = self.models()
            if not found:
                raise EndpointError(f"{self.url} serves no model. Name one with --served-model.")
            self._model = found[0]
        return self._model

    def models(self) -> list[str]:
        """The names that the server answers to: its models, and the adapters that are loaded."""
        found: list[str] = self._ask("GET", "/models", None, lambda body: [str(item["id"]) for item in body["data"]])
        return found

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
        neutral: bool = False,
    ) -> list[Reply]:
        """Ask for ``n`` answers to a conversation.

        Args:
            messages: see :func:`cwdpo.negatives.conversation.messages_of`.
            n, temperature, top_p, max_tokens, seed: as the API names them.
            schema: a JSON schema that the server must keep the answer to.
            neutral: sample from the model's own distribution, changed by temperature and top_p alone; see
                :data:`NEUTRAL`. Fields that the server does not know are left out from then on, with a warning.

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
        while True:
            sent = request | (self._neutral if neutral else {})
            try:
                replies: list[Reply] = self._ask("POST", "/chat/completions", sent, self._replies)
                return replies
            except RefusalError as error:
                if not self._leave_out([field for field in NEUTRAL if field in sent and error.names(field)]):
                    raise

    def post(self, path: str, body: Mapping[str, Any], *, retries: int | None = None) -> None:
        """Send a command whose answer does not matter, such as vLLM's ``/load_lora_adapter``.

        Args:
            path: below the URL.
            body: what is sent.
            retries: in place of the endpoint's own number.
        """
        self._ask("POST", path, body, None, retries=retries)

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
            if isinstance(error, RefusalError) and error.hopeless:
                raise
            if self._failures >= self._give_up_after:
                raise EndpointError(
                    f"{error} This was number {self._failures} in a row, so no more are asked."
                ) from error
            logger.warning("%s", error)
            return None

    def _leave_out(self, fields: Sequence[str]) -> bool:
        """Send fields no more; whether there are any."""
        with self._lock:
            new = [field for field in fields if self._neutral.pop(field, None) is not None]
        if new:
            names = ", ".join(new)
            logger.warning(
                "%s does not know %s: sent no more. If it has defaults of its own for them, samples are not quite the "
                "model's own.",
                self.url,
                names,
            )
        return bool(fields)

    def _ask(
        self, method: str, path: str, body: Any, read: Callable[[Any], Any] | None, *, retries: int | None = None
    ) -> Any:
        problem, retries = "", self._retries if retries is None else retries
        for attempt in range(retries + 1):
            with self._lock:
                self.usage.requests += 1
                self.usage.retries += attempt > 0
            pause: float | None = None
            try:
                response = self._client.request(method, self.url + path, json=body)
                if response.status_code in TRY_AGAIN:
                    problem, pause = told(response), retry_after(response)
                elif response.is_error:
                    raise self._refusal(response, path, body)
                else:
                    answer = None if read is None else read(response.json())
                    self._failures, self._has_answered = 0, True
                    return answer
            except EndpointError:
                raise
            except httpx2.RequestError as error:
                problem = f"{type(error).__name__} {error}".strip()
            except (ValueError, KeyError, TypeError, IndexError) as error:
                problem = f"its answer made no sense ({type(error).__name__}: {error})"
            if self._failures >= self._give_up_after:
                break
            if attempt < retries:
                self._sleep(min(self._backoff * 2**attempt if pause is None else pause, _LONGEST_WAIT))
        self._failures += 1
        raise EndpointError(f"{self.url}{path} failed {attempt + 1} times; the last time: {problem}.")

    def _refusal(self, response: Any, path: str, body: Any) -> RefusalError:
        model = body.get("model") if isinstance(body, Mapping) else None
        error = refusal_of(
            response, self.url + path, model=model, has_key=self._has_key, has_answered=self._has_answered
        )
        self._failures += response.status_code in (401, 403, 404)
        return error

    def _replies(self, body: Any) -> list[Reply]:
        replies = read_replies(body)
        with self._lock:
            self.usage.add(body.get("usage"))
        return replies
