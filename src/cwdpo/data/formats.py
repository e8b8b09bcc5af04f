"""Row formats: recognise how a data set writes its rows, and read each into the one form of :class:`Row`.

========================  ==========================================================================================
``trl``                   ``prompt`` (text or messages), ``chosen``, ``rejected``, ``images``: the canonical form
``flat``                  ``prompt``, ``chosen``, ``rejected`` as text, and ``image``
``llamafactory``          ``conversations`` (or ``messages``) up to the user's turn, ``chosen``, ``rejected``
``ms-swift``              ``messages`` with the chosen answer last, and ``rejected_response``
``rlaif-v``               ``question``, ``chosen``, ``rejected``, ``image``
``llava``                 ``conversations`` with the chosen answer last; no rejected answer, so for stage 1
========================  ==========================================================================================

In every format ``gentle``, ``negatives``, ``longer``, ``shorter`` (paraphrases of the chosen answer, for probes),
``kind`` and ``id`` may be added, ``image`` may stand for ``images``, and a value of null is as good as none. Of a
conversation only the last assistant turn is an answer to learn from; the earlier ones are part of the prompt.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from cwdpo.data.images import resolve_image
from cwdpo.data.rows import ImageSlot, ImageSource, Message, Row
from cwdpo.errors import DataError

PLACEHOLDER = "<image>"
"""Marks an image's place in text, in every format read here."""

_OTHER_ANSWERS = ("gentle", "longer", "shorter")
_OPTIONAL = ("images", "image", "rejected", "gentle", "negatives", "longer", "shorter", "kind", "id", "system")
_KEYS: dict[str, tuple[str, ...]] = {
    "trl": ("prompt", "chosen"),
    "flat": ("prompt", "chosen"),
    "llamafactory": ("conversations", "messages", "chosen"),
    "ms-swift": ("messages", "rejected_response"),
    "rlaif-v": ("question", "chosen", "idx"),
    "llava": ("conversations",),
}
_OTHER_NAMES_OF_IMAGE = ("img", "imgs", "image_path", "image_paths", "image_file", "picture", "pictures", "photo")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

_EXAMPLE = '{"images": ["a.png"], "prompt": "...", "chosen": "...", "rejected": "..."}'
_MESSAGE = '{"role": "user", "content": "..."}'
_PLACEHOLDER = re.compile(rf"(?:\A{PLACEHOLDER}\n|\n{PLACEHOLDER}\Z|{PLACEHOLDER})")


def format_of(record: Mapping[str, Any]) -> str:
    """Name of the format a record is written in, or ``unknown``.

    Example:
        >>> format_of({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"})
        'rlaif-v'
    """
    has = {key for key, value in record.items() if value is not None}
    if has & {"conversations", "messages"}:
        if has & {"chosen", "rejected"}:
            return "llamafactory"
        return "llava" if "conversations" in has else "ms-swift"
    if {"question", "chosen"} <= has:
        return "rlaif-v"
    if {"prompt", "chosen"} <= has:
        return "flat" if "image" in has and isinstance(record["prompt"], str) else "trl"
    return "unknown"


def unread_columns(record: Mapping[str, Any]) -> list[str]:
    """Keys of a record that its format does not read, in the record's order."""
    known = (*_KEYS.get(format_of(record), ()), *_OPTIONAL)
    return [key for key, value in record.items() if value is not None and key not in known]


def row_from_record(record: Mapping[str, Any], *, source: str, image_root: Path | None) -> Row:
    """Read one record of any known format; a ``DataError`` where anything is missing, wrong, empty or ambiguous.

    Relative image paths start at the ``image_root`` and may not leave it; None, for rows in memory, refuses them.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: a row is a {type(record).__name__}, but must be an object like {_EXAMPLE}.")
    record = {key: value for key, value in record.items() if value is not None}
    _check_keys(record, source)
    key = next((key for key in ("conversations", "messages", "question", "prompt") if key in record), "prompt")
    turns, chosen = _chosen(record, key, _conversation(record, key, source), source)
    images = _images(record, source, image_root)
    where = f"{source}: `{key}`"
    _check_prompt(turns, where)
    return Row(
        prompt=_place_images(turns, len(images), where),
        chosen=chosen,
        rejected=_rejected(record, source),
        **{name: read_answer(record[name], f"{source}: `{name}`") for name in _OTHER_ANSWERS if name in record},
        images=images,
        kind=_label(record, "kind", source),
        id=_label(record, "id", source) or _label(record, "idx", source) or "",
        source=source,
    )


def read_answer(value: Any, where: str) -> str:
    """An answer, given as text, as one assistant message or as a list that holds just that message.

    ``where`` is the row's source and the key, as messages begin: ``"rows.jsonl:3: `chosen`"``.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) != 1:
            raise DataError(
                f"{where} is a list of {len(value)} messages, but must be the one answer. "
                "Move the turns before it into `prompt`; more rejected answers go into `negatives`."
            )
        value = value[0]
    if isinstance(value, Mapping):
        message = _turn(value, where)
        if message.role != "assistant":
            raise DataError(f'{where} is a {message.role} message. Write {{"role": "assistant", "content": "..."}}.')
        value = _text_of(message, where)
    text = _read_text(value, where)
    if PLACEHOLDER in text:
        raise DataError(f"{where} holds {PLACEHOLDER}, but answers are text. Images belong to the prompt.")
    return text


def _check_keys(record: Mapping[str, Any], source: str) -> None:
    """Refuse what would be passed over in silence: unknown formats, misspelt keys, and media that are not images."""
    for key in ("videos", "video", "audios", "audio", "tools", "rejected_images", "rejected_messages"):
        if record.get(key):
            raise DataError(f"{source}: the row has `{key}`, which is not supported. Take the key or the row out.")
    if "image" in record and "images" in record:
        raise DataError(f"{source}: the row has both `image` and `images`. Keep one of them.")
    if format_of(record) == "unknown":
        raise DataError(
            f"{source}: the row's keys are {', '.join(map(repr, record)) or 'none'}, which is not a known format. "
            f"Write {_EXAMPLE}."
        )
    for key in unread_columns(record):
        near = difflib.get_close_matches(key, ("images", "image", "rejected", "gentle", "negatives"), 1, 0.82)
        if key in _OTHER_NAMES_OF_IMAGE and "image" not in record and "images" not in record:
            near = ["image"]
        if near:
            raise DataError(f"{source}: unknown key `{key}`. Did you mean `{near[0]}`? Else give it another name.")


def _conversation(record: Mapping[str, Any], key: str, source: str) -> list[Message]:
    """All turns: a list of role/content or from/value turns, or text alone as one user message; a ``system`` first."""
    value, where = record[key], f"{source}: `{key}`"
    if isinstance(value, str):
        turns = [Message("user", _split(_read_text(value, where)))]
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        turns = [_turn(turn, f"{where}[{index}]") for index, turn in enumerate(value)]
    else:
        raise DataError(f"{where} is {_shown(value)}. Write text or a list of messages like {_MESSAGE}.")
    if "system" in record:
        if turns and turns[0].role == "system":
            raise DataError(f"{source}: the row has both `system` and a system turn. Keep one of them.")
        turns.insert(0, Message("system", (_read_text(record["system"], f"{source}: `system`"),)))
    return turns


def _chosen(record: Mapping[str, Any], key: str, turns: list[Message], source: str) -> tuple[list[Message], str]:
    """The turns of the prompt, and the chosen answer, which some formats write as the last turn."""
    if format_of(record) not in ("ms-swift", "llava"):
        if "chosen" not in record:
            raise DataError(f"{source}: the row has no `chosen`. Write the preferred answer there.")
        return turns, read_answer(record["chosen"], f"{source}: `chosen`")
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            f"{source}: `{key}` must end with the assistant's turn, which is the chosen answer. Add that turn, "
            "or write the answer under `chosen`."
        )
    text = _text_of(turns[-1], f"{source}: the last turn of `{key}`")
    return turns[:-1], read_answer(text, f"{source}: `{key}`")


def _rejected(record: Mapping[str, Any], source: str) -> tuple[str, ...]:
    key = "rejected_response" if format_of(record) == "ms-swift" else "rejected"
    first = [read_answer(record[key], f"{source}: `{key}`")] if key in record else []
    value = record.get("negatives", [])
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise DataError(f'{source}: `negatives` must be a list of answers. Write ["..."]; one answer is `rejected`.')
    return (*first, *(read_answer(answer, f"{source}: `negatives`[{i}]") for i, answer in enumerate(value)))


def _images(record: Mapping[str, Any], source: str, root: Path | None) -> tuple[ImageSource, ...]:
    """The row's images, in order: each a path, bytes, a ``datasets`` record of the two, or decoded."""
    key = "images" if "images" in record else "image"
    value = record.get(key, [])
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    images: list[ImageSource] = []
    for index, item in enumerate(value if several else [value]):
        if isinstance(item, Mapping):
            item = item.get("bytes") if item.get("bytes") is not None else item.get("path")
        if isinstance(item, str):
            images.append(resolve_image(item, root, source=source))
        elif isinstance(item, Image.Image | bytes):
            images.append(item)
        else:
            raise DataError(
                f"{source}: `{key}`{f'[{index}]' if several else ''} is of type {type(item).__name__}, but must be a "
                'path. Write "images": ["a.png"], or leave `images` out if the row has none.'
            )
    return tuple(images)


def _label(record: Mapping[str, Any], key: str, source: str) -> str | None:
    """A short name, given as text or as a whole number."""
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{source}: `{key}` is a {type(value).__name__}, but must be text or a whole number.")


def _check_prompt(messages: Sequence[Message], where: str) -> None:
    """A prompt may begin with a system message and must end with the user's."""
    if not messages or messages[-1].role != "user":
        last = f"ends with a turn of role {messages[-1].role!r}" if messages else "holds no turn"
        raise DataError(
            f"{where} {last}, but an answer must follow a user's turn. End it with {_MESSAGE}; "
            "the assistant's last turn is the answer."
        )
    for index, message in enumerate(messages):
        if message.role == "system" and index:
            raise DataError(f"{where}[{index}] is a system turn. Put it first.")


def _place_images(messages: Sequence[Message], num_images: int, where: str) -> tuple[Message, ...]:
    """Give every image a slot: where the text marks it, else at the start of the first user turn, as TRL does."""
    slots = sum(isinstance(part, ImageSlot) for message in messages for part in message.parts)
    if slots == 0 and num_images:
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        leading = replace(messages[first], parts=(ImageSlot(),) * num_images + messages[first].parts)
        return (*messages[:first], leading, *messages[first + 1 :])
    if slots != num_images:
        raise DataError(
            f"{where} marks {slots} image{'s' * (slots != 1)}, but the row has {num_images}. Write one "
            f"{PLACEHOLDER} for each image, or none to have them stand at the start."
        )
    return tuple(messages)


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {_shown(turn)}. Write a message like {_MESSAGE}.")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise DataError(f"{where} has no `{missing}`. Write a message like {_MESSAGE}.")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where} has the unknown role {role!r}. Write system, user or assistant.")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = tuple(part for item in content for part in _part(item, where))
    else:
        parts = _split(_read_text(content, where))
    if not any(isinstance(part, ImageSlot) or part.strip() for part in parts):
        raise DataError(f"{where} is empty. Write the text, or take the turn out.")
    return Message(_ROLES[role], parts)


def _part(item: Any, where: str) -> tuple[str | ImageSlot, ...]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        text = item.get("text")
        if isinstance(text, str) and not text.strip():
            return (text,) if text else ()
        return _split(_read_text(text, where))
    if kind == "image":
        own = [key for key in ("image", "path", "url", "base64") if item.get(key) is not None]
        if own:
            raise DataError(
                f"{where} names an image inside its content (`{own[0]}`). List it in the row's `images` and "
                'write {"type": "image"} alone.'
            )
        return (ImageSlot(),)
    raise DataError(
        f"{where} holds {_shown(item) if kind is None else f'a part of type {kind!r}'}. "
        'Write {"type": "text", "text": "..."} or {"type": "image"}.'
    )


def _split(text: str) -> tuple[str | ImageSlot, ...]:
    """Cut text at its placeholders, without the newline that separates them from it: chat templates put their own.

    Example:
        >>> _split("<image>\\nWhat is this?")
        (ImageSlot(), 'What is this?')
    """
    first, *others = _PLACEHOLDER.split(text)
    parts = (first, *(part for piece in others for part in (ImageSlot(), piece)))
    return tuple(part for part in parts if part)


def _text_of(message: Message, where: str) -> str:
    """An answer's message as one text."""
    texts = [part for part in message.parts if isinstance(part, str)]
    if len(texts) != len(message.parts):
        raise DataError(f"{where} holds an image, but answers are text. Images belong to the prompt.")
    return "".join(texts)


def _read_text(value: Any, where: str) -> str:
    """A string that has something in it and that a tokenizer can read."""
    if not isinstance(value, str):
        raise DataError(f"{where} is {_shown(value)}, but must be text.")
    if not value.strip():
        raise DataError(f"{where} is empty. Write the text, or take the row out.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{where} holds half of a surrogate pair at character {problem.start + 1}, which is not a "
            "character. Write the file with ensure_ascii=False, or take the character out."
        ) from problem
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
