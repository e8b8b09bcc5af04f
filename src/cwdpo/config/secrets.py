"""What must not be written down: keys and passwords, in messages, logs, files and whatever a server sends back.

Keys are taken from the environment (``OPENAI_API_KEY``). Settings that would hold one, URLs with a password among them,
are refused, as settings stand in a run's files. :func:`redact` takes known keys out of any text; messages, logs and the
answers of servers pass through it.
"""

import html
import json
import logging
import os
import re
from typing import Any
from urllib.parse import quote, urlsplit

from cwdpo.errors import ConfigError, printable, shortened

HIDDEN = "<secret>"
_SHORTEST = 8
"""Shorter ones, such as ``EMPTY``, are no secrets; to replace them would spoil other words."""

_OF_ENVIRONMENT = re.compile(r".*(API_KEY|TOKEN|SECRET|PASSWORD)", re.IGNORECASE)
_IN_URL = re.compile(r"(?<=://)[^\s/?#@]*@")
_forms: dict[str, None] = {}
"""Every spelling of every secret, longest first."""


def protect(secret: str) -> None:
    """Have a secret taken out by :func:`redact` from now on, as it is and as JSON, HTML and URLs write it."""
    if len(secret) < _SHORTEST:
        return
    spellings = {secret, json.dumps(secret)[1:-1], html.escape(secret), quote(secret, safe=""), quote(secret)}
    longest_first = sorted({*_forms, *spellings}, key=lambda form: (-len(form), form))
    _forms.clear()
    _forms.update(dict.fromkeys(longest_first))


def protect_environment() -> None:
    """Protect the values of variables whose names say that they are secret."""
    for name, value in os.environ.items():
        if _OF_ENVIRONMENT.fullmatch(name):
            protect(value.strip())


def redact(text: str) -> str:
    """A text without protected secrets, and without names and passwords in URLs.

    Example:
        >>> redact("GET http://me:geheim@host/v1 failed")
        'GET http://<secret>@host/v1 failed'
    """
    for form in _forms:
        text = text.replace(form, HIDDEN)
    return _IN_URL.sub(f"{HIDDEN}@", text)


def redact_json(value: Any) -> Any:
    """A JSON value with every text and key redacted, and its lone surrogates replaced, which no file can hold."""
    if isinstance(value, str):
        return redact(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    if isinstance(value, list):
        return [redact_json(item) for item in value]
    if isinstance(value, dict):
        return {redact_json(key): redact_json(item) for key, item in value.items()}
    return value


def check_url(url: str, what: str) -> None:
    """Refuse, with a ConfigError that does not repeat it, a URL with a secret in it or that is none; ``what`` is its
    name in the message, such as ``--judge``."""
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not False
    except ValueError:  # a broken IPv6 address, or a port that is none
        is_url = False
    if not is_url or not url.isprintable() or " " in url:
        raise ConfigError(
            f"{what} {shortened(redact(url))!r} is not a URL. Write one such as http://127.0.0.1:8000/v1."
        )
    if parts.username is not None or parts.password is not None or parts.query:
        raise ConfigError(
            f"{what} is a URL with a name, a password or a query in it, which would be written into files. Put the key "
            "into OPENAI_API_KEY, and give the URL alone."
        )


class Redacting(logging.Filter):
    """Redacts what a handler writes, and keeps control characters from the terminal."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = printable(redact(record.getMessage())), ()
        if record.exc_info:
            record.exc_text = redact(logging.Formatter().formatException(record.exc_info))
        return True
