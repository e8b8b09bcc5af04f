"""Gentle negatives from a server: image, question and right answer in, one minimal edit out.

The reply must follow a JSON schema; slips are repaired where that is safe, and other replies are dropped.
"""

from dataclasses import dataclass
from typing import Any

from cwdpo.data.rows import Row
from cwdpo.negatives.filtering import Rules, filter_negatives, ngram_overlap
from cwdpo.negatives.server import Endpoint, messages_of, parse_json, text_message

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
_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": _TEXT | {"enum": list(KINDS)}, "from": _TEXT, "to": _TEXT, "negative": _TEXT},
    "required": ["kind", "from", "to", "negative"],
    "additionalProperties": False,
}

LEAST_OVERLAP = 0.3
"""An n-gram overlap with the right answer below this is not a minor error, unless the answer has only a few words."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one row: a negative, or the reason why there is none."""

    negative: str | None = None
    kind: str | None = None
    reason: str | None = None
    """``malformed``, ``not_minor`` or one of :func:`cwdpo.negatives.filtering.filter_negatives`'s."""


def ask_gentle(
    endpoint: Endpoint, row: Row, *, temperature: float = 0.7, max_tokens: int = 512, seed: int = 0
) -> Asked:
    """Have a server make one minor error in a row's right answer."""
    asked = [*messages_of(row), text_message("assistant", row.chosen), text_message("user", PROMPT)]
    (reply, *_) = endpoint.chat(asked, temperature=temperature, max_tokens=max_tokens, seed=seed, schema=SCHEMA)
    found = parse_json(reply.text) or {}
    negative, kind = found.get("negative"), found.get("kind")
    if not isinstance(negative, str) or not negative.strip():
        return Asked(reason="malformed")
    negative = negative.strip()
    (reason,) = filter_negatives([row.chosen], [negative], Rules())
    if reason is None and len(row.chosen.split()) > 3 and ngram_overlap(row.chosen, negative) < LEAST_OVERLAP:
        reason = "not_minor"
    return Asked(reason=reason) if reason else Asked(negative, kind if kind in KINDS else "other")
