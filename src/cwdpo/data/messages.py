"""Turns of a conversation, as the formats write them, into messages with image slots."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cwdpo.data.rows import ImageSlot, Message
from cwdpo.errors import DataError

PLACEHOLDER = "<image>"
"""Marks an image's place in text, in every format read here."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_MESSAGE = '{"role": "user", "content": "..."}'
_PLACEHOLDER = re.compile(rf"(?:\A{PLACEHOLDER}\n|\n{PLACEHOLDER}\Z|{PLACEHOLDER})")


def read_text(value: Any, what: str, source: str) -> str:
    """A string that has something in it and that a tokenizer can read."""
    if not isinstance(value, str):
        raise DataError(f"{source}: {what} is {_kind(value)}, but must be text.")
    if not value.strip():
        raise DataError(f"{source}: {what} is empty. Write the text, or take the row out.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{source}: {what} holds half of a surrogate pair at character {problem.start + 1}, which is not a "
            "character. Write the file with ensure_ascii=False, or take the character out."
        ) from problem
    return value


def read_answer(value: Any, what: str, source: str) -> str:
    """An answer, given as text, as one assistant message or as a list that holds just that message."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) != 1:
            raise DataError(
                f"{source}: {what} is a list of {len(value)} messages, but must be the one answer. "
                "Move the turns before it into `prompt`; more rejected answers go into `negatives`."
            )
        value = value[0]
    if isinstance(value, Mapping):
        role, parts = _turn(value, what, source)
        if role != "assistant":
            raise DataError(f'{source}: {what} is a {role} message. Write {{"role": "assistant", "content": "..."}}.')
        if any(isinstance(part, ImageSlot) for part in parts):
            raise DataError(f"{source}: {what} holds an image, but answers are text. Images belong to the prompt.")
        value = "".join(part for part in parts if isinstance(part, str))
    text = read_text(value, what, source)
    if PLACEHOLDER in text:
        raise DataError(f"{source}: {what} holds {PLACEHOLDER}, but answers are text. Images belong to the prompt.")
    return text


def read_turns(value: Any, what: str, source: str) -> list[Message]:
    """A conversation as a list of role/content or from/value turns; text alone is one user message."""
    if isinstance(value, str):
        return [Message("user", _split(read_text(value, what, source)))]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise DataError(f"{source}: {what} is {_kind(value)}. Write text or a list of messages like {_MESSAGE}.")
    return [Message(*_turn(turn, f"{what}[{index}]", source)) for index, turn in enumerate(value)]


def check_prompt(messages: Sequence[Message], what: str, source: str) -> None:
    """A prompt may begin with a system message and must end with the user's."""
    if not messages or messages[-1].role != "user":
        last = f"ends with a turn of role {messages[-1].role!r}" if messages else "holds no turn"
        raise DataError(
            f"{source}: {what} {last}, but an answer must follow a user's turn. End it with {_MESSAGE}; "
            "the assistant's last turn is the answer."
        )
    for index, message in enumerate(messages):
        if message.role == "system" and index:
            raise DataError(f"{source}: {what}[{index}] is a system turn. Put it first.")


def place_images(messages: Sequence[Message], num_images: int, what: str, source: str) -> tuple[Message, ...]:
    """Give every image a slot: where the text marks it, else at the start of the first user turn, as TRL does."""
    slots = sum(isinstance(part, ImageSlot) for message in messages for part in message.parts)
    if slots == 0 and num_images:
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        leading = replace(messages[first], parts=(ImageSlot(),) * num_images + messages[first].parts)
        return (*messages[:first], leading, *messages[first + 1 :])
    if slots != num_images:
        raise DataError(
            f"{source}: {what} marks {slots} image{'s' * (slots != 1)}, but the row has {num_images}. Write one "
            f"{PLACEHOLDER} for each image, or none to have them stand at the start."
        )
    return tuple(messages)


def _turn(turn: Any, what: str, source: str) -> tuple[str, tuple[str | ImageSlot, ...]]:
    """Role and parts of one turn."""
    if not isinstance(turn, Mapping):
        raise DataError(f"{source}: {what} is {_kind(turn)}. Write a message like {_MESSAGE}.")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise DataError(f"{source}: {what} has no `{missing}`. Write a message like {_MESSAGE}.")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{source}: {what} has the unknown role {role!r}. Write system, user or assistant.")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = tuple(part for item in content for part in _part(item, what, source))
    else:
        parts = _split(read_text(content, what, source))
    if not any(isinstance(part, ImageSlot) or part.strip() for part in parts):
        raise DataError(f"{source}: {what} is empty. Write the text, or take the turn out.")
    return _ROLES[role], parts


def _part(item: Any, what: str, source: str) -> tuple[str | ImageSlot, ...]:
    """One piece of structured content."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        text = item.get("text")
        return () if text == "" else _split(read_text(text, what, source) if not _is_space(text) else text)
    if kind == "image":
        own = [key for key in ("image", "path", "url", "base64") if item.get(key) is not None]
        if own:
            raise DataError(
                f"{source}: {what} names an image inside its content (`{own[0]}`). List it in the row's `images` and "
                'write {"type": "image"} alone.'
            )
        return (ImageSlot(),)
    raise DataError(
        f"{source}: {what} holds {_kind(item) if kind is None else f'a part of type {kind!r}'}. "
        'Write {"type": "text", "text": "..."} or {"type": "image"}.'
    )


def _split(text: str) -> tuple[str | ImageSlot, ...]:
    """Cut text at its placeholders.

    The newline between a placeholder and the text, at either end of a turn, separates the two in the format and is
    not part of the text: chat templates put their own.

    Example:
        >>> _split("<image>\\nWhat is this?")
        (ImageSlot(), 'What is this?')
    """
    parts: list[str | ImageSlot] = []
    for index, piece in enumerate(_PLACEHOLDER.split(text)):
        if index:
            parts.append(ImageSlot())
        if piece:
            parts.append(piece)
    return tuple(parts)


def _is_space(text: Any) -> bool:
    return isinstance(text, str) and bool(text) and text.isspace()


def _kind(value: Any) -> str:
    """A wrong value, as a message shows it."""
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
