"""Gentle negatives from a server: image, question and right answer in, one minimal edit out.

The server is kept to a JSON schema; what still is not JSON is repaired where that is safe, and dropped otherwise.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.data.rows import Row
from cwdpo.negatives.filtering import Rules, filter_negatives, ngram_overlap
from cwdpo.negatives.server import Endpoint, messages_of

PROMPT = """\
The assistant's answer above is right. Write a wrong answer that differs from it in ONE small detail and in nothing \
else: another object, attribute (colour, size, material, age), count, spatial relation, action, order, yes/no, number \
or unit. The detail must be checkable in the image (or, without an image, from the question), and must be wrong there. \
Keep every other word, the length, the style and the punctuation. The wrong answer must read as naturally as the right \
one. Do not negate the whole sentence, do not hedge, and do not explain.
Answer in JSON: {"kind": what you changed, "from": the words that you replaced, "to": the words that you put there, \
"negative": the whole wrong answer}."""
"""What the server is asked, after the conversation with its right answer."""

KINDS = ("object", "attribute", "count", "relation", "action", "order", "yes_no", "number", "other")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": list(KINDS)},
        "from": {"type": "string"},
        "to": {"type": "string"},
        "negative": {"type": "string"},
    },
    "required": ["kind", "from", "to", "negative"],
    "additionalProperties": False,
}

LEAST_OVERLAP = 0.3
"""An n-gram overlap with the right answer below this is no minor error, unless the answer has only a few words."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one row: a negative, or the reason why there is none."""

    negative: str | None = None
    kind: str | None = None
    reason: str | None = None
    """``malformed``, ``not_minor`` or one of :mod:`cwdpo.negatives.filtering`'s."""


def ask_gentle(
    endpoint: Endpoint, row: Row, *, temperature: float = 0.7, max_tokens: int = 512, seed: int = 0
) -> Asked:
    """Have a server make one minor error in a row's right answer.

    Raises:
        EndpointError: the server did not answer.
    """
    right = {"role": "assistant", "content": [{"type": "text", "text": row.chosen}]}
    question = {"role": "user", "content": [{"type": "text", "text": PROMPT}]}
    (reply, *_) = endpoint.chat(
        [*messages_of(row), right, question],
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
        schema=SCHEMA,
    )
    found = parse_json(reply.text)
    negative = found.get("negative") if found else None
    if not isinstance(negative, str) or not negative.strip():
        return Asked(reason="malformed")
    kind = found.get("kind") if found else None
    reason = _reason([row.chosen], negative.strip())
    if reason is not None:
        return Asked(reason=reason)
    return Asked(negative.strip(), kind if kind in KINDS else "other")


def parse_json(text: str) -> dict[str, Any] | None:
    """Read an object from what a model wrote, with the slips that models make repaired.

    Repaired are text around the object, code fences, commas before a bracket, and brackets missing at the end. An
    object that breaks off inside a text is not: nobody knows how the text would have gone on.

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
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _repaired(text: str) -> str:
    """Commas before brackets taken out, and missing brackets added; texts inside the object stay as they are."""
    pieces = re.split(r'("(?:[^"\\]|\\.)*")', text)
    pieces[::2] = [re.sub(r",(?=\s*[}\]])", "", piece.split("```")[0]) for piece in pieces[::2]]
    still_open: list[str] = []
    for piece in pieces[::2]:
        for sign in piece:
            if sign in "{[":
                still_open.append("}" if sign == "{" else "]")
            elif sign in "}]" and still_open:
                still_open.pop()
    return "".join(pieces).rstrip().rstrip(",") + "".join(reversed(still_open))


def _reason(right: Sequence[str], negative: str) -> str | None:
    found = filter_negatives(right, [negative], Rules(length_gap=None))
    if found.dropped:
        return found.dropped[0][1]
    few = min(len(answer.split()) for answer in right) <= 3
    if not few and max(ngram_overlap(answer, negative) for answer in right) < LEAST_OVERLAP:
        return "not_minor"
    return None
