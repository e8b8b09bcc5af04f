"""What an OpenAI-compatible server answered, and what it cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def add(self, used: Mapping[str, Any] | None) -> None:
        """Count what an answer says that it used."""
        for name in ("prompt_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + int((used or {}).get(name) or 0))

    def cost(self, *, prompt_price: float, completion_price: float) -> float:
        """In the prices' currency; these are per million tokens.

        Example:
            >>> Usage(prompt_tokens=2_000_000, completion_tokens=500_000).cost(prompt_price=1.0, completion_price=4.0)
            4.0
        """
        return (self.prompt_tokens * prompt_price + self.completion_tokens * completion_price) / 1e6


def read_replies(body: Any) -> list[Reply]:
    """The answers in what a server sent.

    Raises:
        ValueError: there are none, or it has another form; likewise ``KeyError``, ``TypeError`` and ``IndexError``.
    """
    replies = [
        Reply((choice["message"]["content"] or "").strip(), choice.get("finish_reason") != "length")
        for choice in body["choices"]
    ]
    if not replies:
        raise ValueError("no choices")
    return replies
