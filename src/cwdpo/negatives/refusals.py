"""What a server's refusals mean: try again later, never with this request or with any, and what to write instead."""

import re
from typing import Any

from cwdpo.errors import UserError

TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses of servers that are busy or ill."""

_NO_SUCH_MODEL = re.compile(r"(invalid|unknown|no such|not a valid) model", re.IGNORECASE)


class EndpointError(UserError):
    """The server did not answer, or refused."""


class RefusalError(EndpointError):
    """The server refused, and would refuse the same request again."""

    def __init__(self, message: str, *, status: int, text: str, hopeless: bool = False) -> None:
        super().__init__(message)
        self.status, self.text = status, text
        self.hopeless = hopeless
        """Every other request would be refused as well: the key, the URL or the model's name is wrong."""

    def names(self, field: str) -> bool:
        """Whether the server complains of a field of the request."""
        return self.status in (400, 422) and re.search(rf"\b{field}\b", self.text) is not None


def refusal_of(response: Any, url: str, *, model: str | None, has_key: bool, has_answered: bool) -> RefusalError:
    """What an answer that is an error means.

    Args:
        response: the answer.
        url: what was asked.
        model: the model that was asked for, if any.
        has_key: whether a key was sent.
        has_answered: whether this server has answered anything yet; if so, 403 may be about one request alone.
    """
    status, text = response.status_code, response.text.strip()[:10_000]
    advice = _advice(status, text, model, has_key)
    hopeless = advice != "" and not (status == 403 and has_answered)
    return RefusalError(f"{url} refused: {told(response)}.{advice}", status=status, text=text, hopeless=hopeless)


def told(response: Any) -> str:
    """The status, and the beginning of what came with it."""
    return f"HTTP {response.status_code} {response.text.strip()[:200]!r}"


def retry_after(response: Any) -> float | None:
    """Seconds that the server asks to wait, if it says so in numbers."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _advice(status: int, text: str, model: str | None, has_key: bool) -> str:
    """Which of key, URL and model's name is wrong; empty where it is none of them."""
    is_about_model = model is not None and (model in text or "model" in text.lower())
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
