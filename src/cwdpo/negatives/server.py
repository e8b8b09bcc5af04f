"""Client for OpenAI-compatible servers (vLLM, SGLang, a cloud): requests and retries, sampling, adapters, replies."""

import base64
import io
import json
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from cwdpo.config.secrets import check_url, protect, redact, redact_json
from cwdpo.data.images import open_image
from cwdpo.data.rows import Row
from cwdpo.errors import UserError, shortened
from cwdpo.generation import Generated, Sampling

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Sampling settings that change nothing, as vLLM and SGLang name them. What a request leaves out they take from the
checkpoint's ``generation_config.json``, and then do not sample from the model's own distribution."""

_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses of servers that are busy or broken at the moment."""

_LONGEST_WAIT = 60.0
_LARGEST_ANSWER = 16 * 2**20
_PIECE = 2**16
_NO_SUCH_MODEL = re.compile(r"(invalid|unknown|no such|not a valid) model", re.IGNORECASE)
_ENOUGH_PROMPTS, _NEARLY_ALL = 16, 0.9


class EndpointError(UserError):
    """The server did not answer, or refused."""

    hopeless = False
    """Every other request would fail as well: there is no server, or the key, the URL or the model's name is wrong."""


class RefusalError(EndpointError):
    """The server refused, and would refuse the same request again."""

    def __init__(self, message: str, *, status: int, text: str, hopeless: bool = False) -> None:
        super().__init__(message)
        self.status, self.text, self.hopeless = status, text, hopeless


@dataclass(slots=True)
class Usage:
    """What was used so far."""

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
        deadline: float = 300.0,
        retries: int = 5,
        backoff: float = 1.0,
        concurrency: int = 8,
        give_up_after: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: the base, such as ``http://127.0.0.1:8000/v1``.
            model: by default the first that the server names.
            api_key: by default ``OPENAI_API_KEY`` of the environment. Never written to a file or message.
            timeout: seconds to connect, and then between two pieces of an answer.
            deadline: seconds for one attempt as a whole, however slowly its pieces come.
            retries: further attempts after a request that the server was too busy for, that broke off or made no sense;
                at most one where nothing has ever answered at the address.
            backoff: seconds before the first of them; doubled every time, unless the server says how long to wait.
            concurrency: requests at one time.
            give_up_after: requests that fail one after another, retries and all, before the server counts as dead.
        """
        check_url(url, "the endpoint")
        self.url, self.concurrency, self.usage = url.rstrip("/"), concurrency, Usage()
        self.adapter: str | None = None
        """Asked for in place of the model, once one is loaded."""

        self._deadline = deadline
        self._model, self._retries, self._backoff, self._sleep = model, retries, backoff, sleep
        self._give_up_after, self._failures, self._has_answered = give_up_after, 0, False
        self._neutral = dict(NEUTRAL)
        self._lock = threading.Lock()
        self._key = key = (api_key or os.environ.get("OPENAI_API_KEY") or "").strip()
        if not (key.isascii() and key.isprintable()):
            # httpx2 would refuse such a header in a message that quotes the key
            raise UserError("OPENAI_API_KEY has a line break or another character that no key has. Copy it again.")
        protect(key)
        # by default 100 connections, 20 of them kept: beyond that, requests would wait or connect again
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=timeout, headers=headers, limits=limits)

    @property
    def model(self) -> str:
        """The model that answers; an EndpointError where none was named, and the server names none either."""
        if self._model is None:
            served = self.models()
            if not served:
                raise EndpointError(f"{self.url} serves no model. Name one with --served-model.")
            self._model = served[0]
        return self._model

    def models(self) -> list[str]:
        """The names that the server answers to: its models, and the adapters that are loaded."""
        return self._ask("GET", "/models", None, lambda found: [str(item["id"]) for item in _json_of(found)["data"]])

    def chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 512,
        seed: int | None = None,
        schema: Mapping[str, object] | None = None,
        neutral: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[Generated]:
        """Ask for ``n`` answers to a conversation.

        Args:
            messages: see :func:`messages_of`.
            schema: a JSON schema for the answer; the settings before it are as the API names them.
            neutral: sample from the model's own distribution, changed by temperature and top_p alone; see
                :data:`NEUTRAL`. Fields that the server does not know are left out from then on, with a warning.
            template_kwargs: values for the server's chat template, as vLLM and SGLang take them.

        An EndpointError means no answer after all retries, or a refusal that no retry would change.
        """
        request: dict[str, Any] = {"model": self.adapter or self.model, "messages": list(messages), "n": n}
        request |= {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        if seed is not None:
            request["seed"] = seed
        if schema is not None:
            form = {"name": "answer", "strict": True, "schema": dict(schema)}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        if template_kwargs:
            request["chat_template_kwargs"] = dict(template_kwargs)
        while True:
            sent = request | (self._neutral if neutral else {})
            try:
                return self._ask("POST", "/chat/completions", sent, self._replies)[:n]
            except RefusalError as error:
                if error.status not in (400, 422) or not self._leave_out(error.text, sent):
                    raise

    def post(self, path: str, body: Mapping[str, object], *, retries: int | None = None) -> None:
        """Send a command whose answer does not matter, such as vLLM's ``/load_lora_adapter``."""
        self._ask("POST", path, body, lambda answer: None, retries=retries)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[tuple[int, _Result | None]]:
        """Call a function that asks this server for many items, a few at one time.

        Each item's number and result come as soon as there is one; None where the server failed for this item. An
        EndpointError means that the server is dead; what was yielded before is good.
        """
        queue, running = enumerate(items), dict[Future[_Result], int]()
        self._failures = 0
        with ThreadPoolExecutor(self.concurrency) as pool:
            try:
                while True:
                    for number, item in islice(queue, self.concurrency - len(running)):
                        running[pool.submit(function, item)] = number
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(done), self._result(done)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _result(self, done: "Future[_Result]") -> _Result | None:
        try:
            return done.result()
        except EndpointError as error:
            if error.hopeless:
                raise
            if self._failures >= self._give_up_after:
                many = f"{error} This was number {self._failures} in a row, so no more are asked."
                raise EndpointError(many) from error
            logger.warning("%s", error)
            return None

    def _leave_out(self, complaint: str, sent: Mapping[str, object]) -> bool:
        """Send neutral fields that the server complains of no more; whether there are any among what was sent."""
        unknown = [field for field in NEUTRAL if field in sent and re.search(rf"\b{field}\b", complaint)]
        with self._lock:  # several threads may learn of a field at once: one of them warns
            new = [field for field in unknown if self._neutral.pop(field, None) is not None]
        if new:
            logger.warning(
                f"{self.url} does not know {', '.join(new)}: not sent any more. If it has a default of its own for it, "
                "samples are not quite the model's."
            )
        return bool(unknown)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        read: Callable[[httpx2.Response], _Result],
        *,
        retries: int | None = None,
    ) -> _Result:
        """What ``read`` makes of the answer; after trouble that may pass, the request is repeated."""
        problem, retries = "", self._retries if retries is None else retries
        for attempt in range(retries + 1):
            with self._lock:
                self.usage.requests += 1
                self.usage.retries += attempt > 0
            pause = self._backoff * 2**attempt
            try:
                response = self._within_deadline(method, path, body)
                if response.is_success:
                    answer = read(response)
                    self._failures, self._has_answered = 0, True
                    return answer
                if response.status_code not in _TRY_AGAIN:
                    raise self._refusal(response, path, body)
                problem, pause = self._quoted(response), _retry_after(response, pause)
            except EndpointError:
                raise
            except httpx2.HTTPError as error:
                problem = shortened(redact(f"{type(error).__name__} {error}".strip()), 200)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
                problem = f"its answer made no sense ({shortened(redact(f'{type(error).__name__}: {error}'), 200)})"
            is_absent = problem.startswith("Connect") and not self._has_answered
            if self._failures >= self._give_up_after or (is_absent and attempt > 0):
                break
            if attempt < retries:
                self._sleep(min(pause, _LONGEST_WAIT))
        with self._lock:
            self._failures += 1
        advice = " Start the server, or correct its address." if problem.startswith("Connect") else ""
        times = "once" if attempt == 0 else f"{attempt + 1} times; the last time"
        failure = EndpointError(f"{self.url}{path} failed {times}: {problem}.{advice}")
        failure.hopeless = is_absent
        raise failure

    def _within_deadline(self, method: str, path: str, body: Mapping[str, object] | None) -> httpx2.Response:
        """The whole answer; an error where it takes too long or is too large.

        The client's own time-outs begin again with each byte. So a thread waits for the server, and is left behind when
        the time is up.
        """
        done: queue.SimpleQueue[httpx2.Response | BaseException] = queue.SimpleQueue()
        end = time.monotonic() + self._deadline

        def work() -> None:
            try:
                done.put(self._received(method, path, body, end))
            except BaseException as error:
                done.put(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            found = done.get(timeout=self._deadline)
        except queue.Empty:
            found = httpx2.ReadTimeout(f"no whole answer within {self._deadline:g} seconds")
        if isinstance(found, BaseException):
            raise found
        return found

    def _received(self, method: str, path: str, body: Mapping[str, object] | None, end: float) -> httpx2.Response:
        with self._client.stream(method, self.url + path, json=body) as response:
            content = bytearray()
            for piece in response.iter_bytes(_PIECE):
                content += piece
                if len(content) > _LARGEST_ANSWER:
                    raise ValueError(f"it has more than {_LARGEST_ANSWER:,} bytes")
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout(f"no whole answer within {self._deadline:g} seconds")
            # decoded already, so its own headers about that no longer hold
            headers = {name: value for name in ("retry-after",) if (value := response.headers.get(name)) is not None}
            return httpx2.Response(response.status_code, headers=headers, content=bytes(content))

    def _refusal(self, response: httpx2.Response, path: str, body: Mapping[str, object] | None) -> RefusalError:
        status, text = response.status_code, self._text(response)
        if status in (401, 403, 404):
            with self._lock:
                self._failures += 1
        advice = _advice(status, text, str((body or {}).get("model", "")), bool(self._key))
        # a server that has answered before may refuse one prompt alone with 403
        hopeless = advice != "" and not (status == 403 and self._has_answered)
        message = f"{self.url}{path} refused: {self._quoted(response)}.{advice}"
        return RefusalError(message, status=status, text=text, hopeless=hopeless)

    def _quoted(self, response: httpx2.Response) -> str:
        return f"HTTP {response.status_code} {self._text(response)[:200]!r}"

    def _text(self, response: httpx2.Response) -> str:
        """What came, without secrets, which some servers repeat."""
        return redact(response.text.strip())[:10_000]

    def _replies(self, response: httpx2.Response) -> list[Generated]:
        body = _json_of(response)
        replies = [
            Generated((choice["message"]["content"] or "").strip(), choice.get("finish_reason") != "length")
            for choice in body["choices"]
        ]
        if not replies:
            raise ValueError("no choices")
        used = body.get("usage")
        used = used if isinstance(used, dict) else {}
        with self._lock:
            self.usage.prompt_tokens += _count(used.get("prompt_tokens"))
            self.usage.completion_tokens += _count(used.get("completion_tokens"))
        return replies


def _json_of(response: httpx2.Response) -> Any:
    """The JSON of an answer, without secrets."""
    return redact_json(response.json())


def _count(number: object) -> int:
    """A number of tokens; 0 for what is none."""
    return int(number) if isinstance(number, int | float) and 0 <= number < 1e12 else 0


def messages_of(row: Row) -> list[dict[str, Any]]:
    """A row's prompt as the API takes it; images become PNG data URIs, in reading order."""
    images = iter(row.images)

    def content(part: object) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        file = io.BytesIO()  # the very pixels that training sees: upright, RGB, and without another lossy compression
        open_image(next(images), source=row.source).save(file, format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    return [{"role": message.role, "content": [content(part) for part in message.parts]} for message in row.prompt]


def text_message(role: str, text: str) -> dict[str, Any]:
    """One turn of text as the API takes it."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def parse_json(text: str) -> dict[str, Any] | None:
    """Read an object from what a model wrote, with the slips that models make repaired.

    Repaired are text around the object, code fences, line breaks inside texts, commas before a bracket, and brackets
    missing at the end. An object that breaks off inside a text is not: how the text goes on is unknown.

    Example:
        >>> parse_json('Sure!\\n```json\\n{"a": [1, 2,],}\\n```')
        {'a': [1, 2]}
        >>> parse_json('{"a": {"b": 1')
        {'a': {'b': 1}}
        >>> parse_json('{"a": "half a sen') is None
        True
    """
    start = text.find("{")
    if start < 0:
        return None
    body, end = text[start:], text.rfind("}") + 1
    for candidate in (body, text[start:end], _repaired(text[start:end] or body), _repaired(body)):
        try:
            found = json.loads(candidate, strict=False)  # a line break may stand in a text
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


class ServerSampler:
    """Draws from a server in place of the model in memory; see :class:`cwdpo.generation.Sampler`."""

    def __init__(self, endpoint: Endpoint, sampling: Sampling) -> None:
        self.endpoint, self.sampling = endpoint, sampling
        self._answered = self._alike = 0
        self._has_warned = False

    def sample(self, rows: Sequence[Row], *, seed: int) -> list[list[Generated]]:
        """``k`` answers a row; none for rows that the server failed for, which are counted in a warning."""
        how = self.sampling
        settings: dict[str, Any] = {"n": how.k, "temperature": how.temperature, "top_p": how.top_p}
        settings |= {"max_tokens": how.max_new_tokens, "neutral": True}

        def ask(place: int) -> list[Generated]:
            row = rows[place]
            own: dict[str, Any] = {"seed": (seed + place) % 2**31, "template_kwargs": row.template_kwargs}
            return self.endpoint.chat(messages_of(row), **own, **settings)

        by_place = dict(self.endpoint.map(ask, range(len(rows))))
        missed = sum(answers is None for answers in by_place.values())
        message = f"{self.endpoint.url} gave no answer for {missed} of {len(rows)} prompts"
        if missed and missed == len(rows):
            raise EndpointError(f"{message}.")
        if missed:
            logger.warning("%s", message)
        found = [by_place[place] or [] for place in range(len(rows))]
        self._look_for_repetition(found)
        return found

    def _look_for_repetition(self, answers: Sequence[Sequence[Generated]]) -> None:
        """Warn once of a server that says the same thing ``k`` times to nearly every prompt."""
        several = [{answer.text for answer in of_row} for of_row in answers if len(of_row) > 1]
        self._answered += len(several)
        self._alike += sum(len(texts) == 1 for texts in several)
        if self._has_warned or self._answered < _ENOUGH_PROMPTS or self._alike < _NEARLY_ALL * self._answered:
            return
        self._has_warned = True
        logger.warning(
            f"{self.endpoint.url} gave {self.sampling.k} answers that are all alike to {self._alike} of "
            f"{self._answered} prompts. Unless the model is this sure of itself, the server does not sample: check "
            "whether it respects temperature, n and seed."
        )


def load_adapter(endpoint: Endpoint, name: str, directory: Path) -> None:
    """Have vLLM serve an adapter, and ask for it from now on; the one before is unloaded first.

    The server must run with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and see the directory. An
    adapter that it already has under this name is a different one, and is replaced.
    """
    unload_adapter(endpoint)
    if not _load(endpoint, name, directory):
        # not `load_inplace`: older servers do not know it, and what was cached under the name would be used again
        endpoint.post("/unload_lora_adapter", {"lora_name": name})
        if not _load(endpoint, name, directory):
            raise EndpointError(f"{endpoint.url} has another adapter named {name}, and keeps it. Restart the server.")
    endpoint.adapter = name


def load_again(endpoint: Endpoint, directory: Path) -> None:
    """Have a restarted server serve the adapter that requests name; another process may have done so already."""
    assert endpoint.adapter is not None
    _load(endpoint, endpoint.adapter, directory)


def unload_adapter(endpoint: Endpoint, *, retries: int | None = None) -> None:
    """Have vLLM unload the adapter that requests name, if there is one; it may be unknown there."""
    name, endpoint.adapter = endpoint.adapter, None
    if name is not None:
        _unload(endpoint, name, retries=retries)


def unload_left_over(endpoint: Endpoint, prefix: str) -> None:
    """Have vLLM unload what an earlier process, killed before it could clean up, left loaded."""
    for name in endpoint.models():
        if name.startswith(prefix):
            _unload(endpoint, name)


def _load(endpoint: Endpoint, name: str, directory: Path) -> bool:
    """Load an adapter; False where the server has one of this name."""
    path = str(directory.resolve())
    try:
        endpoint.post("/load_lora_adapter", {"lora_name": name, "lora_path": path})
    except RefusalError as error:
        if error.status == 400 and "already been loaded" in error.text:
            return False
        if error.status != 404:
            raise
        advice = "Start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; the URL must end in /v1."
        if name in error.text or path in error.text:
            advice = f"It must see the directory {path}."
        message = f"{endpoint.url} cannot load the adapter: HTTP 404 {error.text[:200]!r}. {advice}"
        raise RefusalError(message, status=404, text=error.text, hopeless=True) from error
    return True


def _unload(endpoint: Endpoint, name: str, *, retries: int | None = None) -> None:
    try:
        endpoint.post("/unload_lora_adapter", {"lora_name": name}, retries=retries)
    except EndpointError as error:
        if not isinstance(error, RefusalError) or error.status != 404:
            logger.warning("the adapter %s stays loaded: %s", name, error)


def _retry_after(response: httpx2.Response, otherwise: float) -> float:
    """Seconds that the server asks to wait, as a number or as a date."""
    wanted = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(wanted))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(wanted).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return otherwise


def _advice(status: int, text: str, model: str, has_key: bool) -> str:
    """Which of key, URL and model's name is wrong; empty where it is none of them."""
    is_about_model = model != "" and (model in text or "model" in text.lower())
    if status == 403 and is_about_model:
        return f" The key may not use the model {model}: put another into OPENAI_API_KEY, or name another model."
    if status in (401, 403):
        wrong = "The key in OPENAI_API_KEY is wrong." if has_key else "It wants a key, and OPENAI_API_KEY is not set."
        return f" {wrong} Put the right one there."
    if (status == 404 and is_about_model) or (status in (400, 422) and model and _NO_SUCH_MODEL.search(text)):
        return f" The model's name is wrong: the server has no {model}. `GET /models` there says which it has."
    if status == 404:
        return " The URL is wrong: it usually ends in /v1."
    return ""


def _repaired(text: str) -> str:
    """Commas before brackets taken out, and missing brackets added; texts inside the object stay as they are."""
    pieces = re.split(r'("(?:[^"\\]|\\.)*")', text)
    pieces[::2] = [re.sub(r",(?=\s*[}\]])", "", piece.split("```")[0]) for piece in pieces[::2]]
    still_open: list[str] = []
    for sign in "".join(pieces[::2]):
        if sign in "{[":
            still_open.append("}" if sign == "{" else "]")
        elif sign in "}]" and still_open:
            still_open.pop()
    return "".join(pieces).rstrip().rstrip(",") + "".join(reversed(still_open))
