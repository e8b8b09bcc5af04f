"""Turns of a conversation as rows write them, and answers: every key of a message is honoured, or refused by name.

What the keys of messages and of their parts mean stands in :data:`MESSAGE_KEYS` and :data:`PART_KEYS`. A key that is in
neither stops the row, because it could be anything. A value of null, or an empty list, text or object, is as good as
none.
"""

import ast
import difflib
import json
import re
from collections.abc import Mapping, Sequence, Set
from datetime import date
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from cwdpo.data.rows import ImageSlot, join_reasoning
from cwdpo.errors import DataError, shortened

PLACEHOLDER = "<image>"
"""Marks an image's place in text, in every format read here."""

_READ = "read"
_METADATA = "metadata"
"""Says nothing that a model should learn; ``cwdpo check`` notes it."""

_NO_TOOLS = "tool calls are not trained. Write the call into the text as the model writes it, or take the row out"
_NO_MEDIA = "only images are read. Take the key or the row out"
_NO_SIZE = "sizes of single images are not read. Resize the image file, or set data.max_pixels for all of them"

MESSAGE_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("role", "from", "content", "value"), _READ),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), _READ),
    **dict.fromkeys(("images", "image"), _READ),
    **dict.fromkeys(("loss", "weight", "train"), _READ),
    **dict.fromkeys(("tool_calls", "tool_call_id", "tool_responses", "function_call", "tools"), _NO_TOOLS),
    **dict.fromkeys(("video", "videos", "audio", "audios"), _NO_MEDIA),
    "prefix": "answers are learned whole. Write the prefix at the start of the answer, or take the key out",
    "refusal": "write the refusal as the message's `content`",
    **dict.fromkeys(("id", "message_id", "parent_id", "index", "idx", "turn", "turn_id", "turn_identifier"), _METADATA),
    **dict.fromkeys(("timestamp", "created", "created_at", "date", "time", "language", "lang", "country"), _METADATA),
    **dict.fromkeys(("model", "source", "score", "rating", "toxic", "redacted", "tokens", "num_tokens"), _METADATA),
}
"""Keys of a message: read, metadata, or why they are refused and what to write instead."""

PART_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("type", "text"), _READ),
    **dict.fromkeys(("image", "image_url", "path", "url", "base64", "bytes", "source", "file"), _READ),
    **dict.fromkeys(("video", "videos", "video_url", "audio", "audio_url", "input_audio"), _NO_MEDIA),
    **dict.fromkeys(("min_pixels", "max_pixels", "resized_height", "resized_width"), _NO_SIZE),
    **dict.fromkeys(("index", "id", "detail", "cache_control"), _METADATA),
}
"""The same for a part of a message's ``content``."""

_READ_IN_MESSAGE, _READ_IN_PART = (
    frozenset(key for key, meaning in keys.items() if meaning == _READ) for keys in (MESSAGE_KEYS, PART_KEYS)
)
_MESSAGE_ALONE, _TEXT_ALONE = frozenset(("role", "content")), frozenset(("type", "text"))
_IMAGE_KEYS = ("image", "image_url", "path", "url", "base64", "bytes", "source", "file")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_LOSS_KEYS = ("loss", "weight", "train")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

_EMPTY_TEXTS = frozenset(("", "[]", "{}", "null", "None"))
_MESSAGE = '{"role": "user", "content": "..."}'
_PLACEHOLDER = re.compile(rf"(?:\A{PLACEHOLDER}\n|\n{PLACEHOLDER}\Z|{PLACEHOLDER})")
_BRACKET = re.compile(r"\s*[\[{]")
_MESSAGE_TEXT = re.compile(r"""["'](?:role|from)["']\s*:\s*["'](?:system|user|human|assistant|gpt)["']""")


class InlineImage(NamedTuple):
    """An image that a message holds itself, where its slot will stand."""

    value: Any
    where: str


Part: TypeAlias = str | ImageSlot | InlineImage


class Turn(NamedTuple):
    """One turn as it was read, still with the images that it holds itself."""

    role: str
    parts: tuple[Part, ...]
    reasoning: str | None = None
    trained: bool | None = None
    """Whether ``loss``, ``weight`` or ``train`` says that the turn is learned; None where none of them does."""

    @property
    def text(self) -> str:
        """Without the images that stand in it."""
        return "".join([part for part in self.parts if isinstance(part, str)])

    @property
    def has_images(self) -> bool:
        return not all([isinstance(part, str) for part in self.parts])


class Answer(NamedTuple):
    """An answer's text, with its reasoning at the start where it has one, and whether that had a key of its own."""

    text: str
    has_reasoning: bool = False


def is_empty(value: object) -> bool:
    """Whether a value is as good as none; false and 0 are values.

    Example:
        >>> [is_empty(value) for value in (None, "", "[]", [], {}, 0, False, "x")]
        [True, True, True, True, True, False, False, False]
    """
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip() in _EMPTY_TEXTS
    if isinstance(value, list):
        return not value
    if isinstance(value, float):
        return value != value  # tables write NaN where a value is missing
    if is_object(value):
        return all(map(is_empty, value.values()))
    return isinstance(value, Sequence) and len(value) == 0


def is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is what JSON calls an object.

    Of a dict Python knows at once what it is; of other types it asks Mapping, ten times slower, and a row asks often.
    """
    return isinstance(value, dict) or (not isinstance(value, str | list) and isinstance(value, Mapping))


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a sequence and no text."""
    return isinstance(value, list) or (not isinstance(value, str | bytes | dict) and isinstance(value, Sequence))


def is_plain(value: object) -> TypeGuard[str]:
    """Whether a value is text in which there is nothing to find: no marks, no messages as text, no half of a character.

    Most texts are so, and that is known at once; of all others it takes a closer look.

    Example:
        >>> [is_plain(value) for value in ("A cat.", "", "[1]", " x", "<image> x", "naïve")]
        [True, False, False, False, False, False]
    """
    return isinstance(value, str) and value[:1].isalnum() and value.isascii() and "<" not in value


def read_turns(value: Any, where: str) -> list[Turn]:
    """The turns of a conversation: a list of messages, such a list as JSON text, or text alone as a user's message."""
    if is_plain(value):
        return [Turn("user", (value,))]
    value = parse_messages(value, where)
    if isinstance(value, str):
        return [Turn("user", split_placeholders(read_text(value, where)))]
    if is_object(value):
        value = [value]
    if is_list(value):
        return [read_turn(turn, f"{where}[{index}]") for index, turn in enumerate(value)]
    raise DataError(f"{where} is {shown(value)}. Write text or a list of messages like {_MESSAGE}.")


def read_answer(value: Any, where: str) -> str:
    """An answer, given as text, as one assistant message or as a list that holds just that message.

    ``where`` is the row's source and the key, as messages begin: ``"rows.jsonl:3: `chosen`"``.
    """
    before, answer = read_last_answer(value, where)
    if before:
        raise DataError(f"{where} is a list of {len(before) + 1} messages, but must be the one answer.")
    return answer.text


def read_last_answer(value: Any, where: str) -> tuple[list[Turn], Answer]:
    """An answer, and the turns before it where a list of messages begins with the prompt."""
    if is_plain(value):
        return [], Answer(value)
    value = parse_messages(value, where)
    if isinstance(value, str):
        return [], Answer(_checked_answer(read_text(value, where), where))
    if is_object(value):
        return [], answer_of(read_turn(value, where), where)
    if is_list(value):
        if not value:
            raise DataError(f"{where} is empty. Write the text, or take the row out.")
        if len(value) == 1 and isinstance(value[0], str):
            return [], Answer(_checked_answer(read_text(value[0], where), where))
        if not all(map(is_object, value)):
            raise DataError(
                f"{where} is a list of {len(value)} messages or texts, but must be the one answer. "
                "Move the turns before it into `prompt`; more rejected answers go into `negatives`."
            )
        *before, last = [read_turn(turn, f"{where}[{index}]") for index, turn in enumerate(value)]
        return before, answer_of(last, where)
    raise _not_text(value, where)


def answer_of(turn: Turn, where: str) -> Answer:
    """The answer that an assistant's turn is."""
    if turn.role != "assistant":
        raise DataError(f'{where} is a {turn.role} message. Write {{"role": "assistant", "content": "..."}}.')
    if turn.trained is False:
        raise DataError(
            f"{where} says that it is not to be learned (`loss`, `weight` or `train`), but answers are what is "
            "learned. Take the key out, or the row."
        )
    if turn.has_images:
        raise DataError(f"{where} holds an image, but answers are text. Images belong to the prompt.")
    text = _checked_answer(turn.text, where)
    if turn.reasoning is None:
        return Answer(text)
    return Answer(join_reasoning(turn.reasoning, text), has_reasoning=True)


def read_turn(turn: Any, where: str) -> Turn:
    """One message, as ``role`` and ``content`` or as ``from`` and ``value``."""
    if not is_object(turn):
        raise DataError(f"{where} is {shown(turn)}. Write a message like {_MESSAGE}.")
    has_more = turn.keys() != _MESSAGE_ALONE
    if not has_more:  # as of most messages
        role, content = turn["role"], turn["content"]
    else:
        _check_keys(turn, MESSAGE_KEYS, _READ_IN_MESSAGE, where, "a message")
        role = _one_of(turn, ("role", "from"), where)
        content = _one_of(turn, ("content", "value"), where)
    if role is None or content is None:
        missing = "role" if role is None else "content"
        raise DataError(f"{where} has no `{missing}`. Write a message like {_MESSAGE}.")
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where} has the unknown role {shown(role)}. Write system, user or assistant.")
    parts = read_content(content, where)
    own = [key for key in ("images", "image") if not is_empty(turn.get(key))] if has_more else []
    if own:
        parts = _with_own_images(parts, turn[own[0]], f"{where} `{own[0]}`")
    if not any([not isinstance(part, str) or part.strip() for part in parts]):
        raise DataError(f"{where} is empty. Write the text, or take the turn out.")
    if not has_more:
        return Turn(_ROLES[role], parts)
    reasoning = _one_of(turn, _REASONING_KEYS, where)
    if reasoning is not None:
        if _ROLES[role] != "assistant":
            raise DataError(f"{where} is a {_ROLES[role]} message with reasoning, which only assistants have.")
        reasoning = read_text(reasoning, f"{where} `reasoning_content`")
        if "".join(part for part in parts if isinstance(part, str)).lstrip().startswith("<think>"):
            raise DataError(f"{where} has its reasoning twice, under a key and as <think> in the text. Keep one.")
    return Turn(_ROLES[role], parts, reasoning, _is_trained(turn, where))


def read_content(content: Any, where: str) -> tuple[Part, ...]:
    """A message's content, as text or as parts."""
    if is_plain(content):
        return (content,)
    if is_object(content):
        content = [content]
    if is_list(content):
        return tuple([part for item in content for part in _part(item, where)])
    return split_placeholders(read_text(content, where))


def parse_messages(value: Any, where: str) -> Any:
    """Messages that stand in a row as text, of JSON or as Python prints them; any other value as it is.

    A text counts as such if it is one object or list in whole, and has a message's role in it. Where it then cannot be
    parsed it is an error: trained on as it stands, a model would learn to write brackets.
    """
    if not isinstance(value, str):
        columns = is_object(value) and isinstance(value.get("role", value.get("from")), list)
        return list_of_objects(value, where) if columns else value
    if not _looks_like_messages(value):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError) as problem:
            raise DataError(
                f"{where} is a text that holds messages, but is neither JSON nor Python: {shortened(value)!r}. Write a "
                f"list of messages like {_MESSAGE}, or take the row out."
            ) from problem
    return found


def list_of_objects(value: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A list of objects from an object of lists, as older data sets store it.

    Example:
        >>> list_of_objects({"role": ["user", "assistant"], "content": ["a", "b"]}, "")
        [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    """
    if not all(isinstance(column, list) for column in value.values()) or len({*map(len, value.values())}) > 1:
        raise DataError(f"{where} is {shown(value)}, an object whose values are not lists of one length.")
    return [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]


def split_placeholders(text: str) -> tuple[Part, ...]:
    """Cut text at its placeholders, without the newline that separates them from it: chat templates put their own.

    Example:
        >>> split_placeholders("<image>\\nWhat is this?")
        (ImageSlot(), 'What is this?')
    """
    if PLACEHOLDER not in text:
        return (text,) if text else ()
    first, *others = _PLACEHOLDER.split(text)
    parts = (first, *(part for piece in others for part in (ImageSlot(), piece)))
    return tuple(part for part in parts if part)


def read_text(value: Any, where: str) -> str:
    """A string that has something in it and that a tokenizer can read."""
    if not isinstance(value, str):
        raise _not_text(value, where)
    if not value.strip():
        raise DataError(f"{where} is empty. Write the text, or take the row out.")
    try:
        value.isascii() or value.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{where} holds half of a surrogate pair at character {problem.start + 1}, which is not a "
            "character. Write the file with ensure_ascii=False, or take the character out."
        ) from problem
    return value


def shown(value: Any) -> str:
    """A value for messages, with its type."""
    return f"{shortened(repr(value), 60)} ({type(value).__name__})"


def is_json(text: str) -> bool:
    """Whether a text is a JSON list or object.

    Example:
        >>> is_json('{"colour": "red"}'), is_json("[sic]")
        (True, False)
    """
    if not _BRACKET.match(text):
        return False
    try:
        return isinstance(json.loads(text), list | dict)
    except (ValueError, RecursionError):
        return False


def metadata_keys(value: Any) -> list[str]:
    """Keys of messages and parts that are not read because they are metadata, each once."""
    found: dict[str, None] = {}
    for item in value if is_list(value) else [value]:
        if not is_object(item):
            continue
        is_message = "role" in item or "from" in item
        if not item.keys() <= (_READ_IN_MESSAGE if is_message else _READ_IN_PART):
            known = MESSAGE_KEYS if is_message else PART_KEYS
            found |= {key: None for key in item if known.get(key) == _METADATA and not is_empty(item[key])}
        if is_message:
            found |= dict.fromkeys(metadata_keys(item.get("content")))
    return list(found)


def _not_text(value: Any, where: str) -> DataError:
    advice = ""
    if isinstance(value, date):  # datasets does so with a column whose texts are all dates
        advice = " What loaded the data took a text for a time: give the file itself, or load the column as text."
    elif isinstance(value, int | float):
        advice = f' Write it in quotes: "{str(value).lower() if isinstance(value, bool) else value}".'
    return DataError(f"{where} is {shown(value)}, but must be text.{advice}")


def _looks_like_messages(text: str) -> bool:
    if not _BRACKET.match(text):
        return False
    start, end = text.lstrip()[:1], text.rstrip()[-1:]
    return (start, end) in (("[", "]"), ("{", "}")) and _MESSAGE_TEXT.search(text) is not None


def _check_keys(item: Mapping[str, Any], known: Mapping[str, str], read: Set[str], where: str, what: str) -> None:
    """Refuse keys that would be passed over in silence; those ``read`` need no closer look."""
    if item.keys() <= read:
        return
    for key, value in item.items():
        meaning = known.get(key)
        if meaning in (_READ, _METADATA) or (is_empty(value) and key not in _LOSS_KEYS):
            continue
        if meaning is not None:
            raise DataError(f"{where} has the key `{key}`, which is not supported: {meaning}.")
        near = difflib.get_close_matches(str(key), known, 1, 0.8)
        advice = f"Did you mean `{near[0]}`?" if near else "Take it out."
        raise DataError(f"{where} has the key {shortened(str(key))!r}, which is not known in {what}. {advice}")


def _one_of(turn: Mapping[str, Any], keys: Sequence[str], where: str) -> Any:
    """The value under whichever key is there; two of them must agree."""
    found = [key for key in keys if turn.get(key) is not None and (turn[key] or keys is not _REASONING_KEYS)]
    if len(found) > 1 and len({repr(turn[key]) for key in found}) > 1:
        raise DataError(f"{where} has both `{'` and `'.join(found)}`, which differ. Keep one of them.")
    return turn[found[0]] if found else None


def _is_trained(turn: Mapping[str, Any], where: str) -> bool | None:
    """What ``loss``, ``weight`` and ``train`` say; only yes and no are honoured."""
    said = None
    for key in _LOSS_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        if value not in (0, 1):  # true and false are equal to them
            raise DataError(
                f"{where} has `{key}` {shown(value)}, but weights of single messages are not read. Take it out."
            )
        said = bool(value)
    return said


def _checked_answer(text: str, where: str) -> str:
    if PLACEHOLDER in text:
        raise DataError(f"{where} holds {PLACEHOLDER}, but answers are text. Images belong to the prompt.")
    return text


def _with_own_images(parts: tuple[Part, ...], value: Any, where: str) -> tuple[Part, ...]:
    """A message's parts with the images that the message itself lists: at its placeholders, else at its start."""
    images = [InlineImage(item, where) for item in (value if is_list(value) else [value])]
    slots = [index for index, part in enumerate(parts) if isinstance(part, ImageSlot)]
    if not slots:
        return (*images, *parts)
    if len(slots) != len(images):
        raise DataError(
            f"{where} lists {len(images)} images, but the message marks {len(slots)}. Write one {PLACEHOLDER} for "
            "each, or none to have them stand at the start."
        )
    given = iter(images)
    return tuple(next(given) if isinstance(part, ImageSlot) else part for part in parts)


def _part(item: Any, where: str) -> tuple[Part, ...]:
    """A part of a message's content: text, an image's place, or an image itself."""
    if isinstance(item, str):
        return split_placeholders(item) if item.strip() else ()
    if not is_object(item):
        raise DataError(f'{where} holds {shown(item)}. Write {{"type": "text", "text": "..."}} or {{"type": "image"}}.')
    has_more = not item.keys() <= _TEXT_ALONE
    held = [key for key in _IMAGE_KEYS if key in item and not is_empty(item[key])] if has_more else []
    kind = item.get("type")
    if kind is None and held:
        kind = "image"
    elif kind is None and item.get("text") is not None:
        kind = "text"
    if kind in _TEXT_PARTS:
        if held:
            raise DataError(
                f"{where} has the key `{held[0]}` in a part of type {kind!r}, where it would be passed over. Write the "
                'image as a part of its own, {"type": "image", "image": "a.png"}.'
            )
        _check_keys(item, PART_KEYS, _READ_IN_PART, where, "a part of a message")
        text = item.get("text")
        if is_plain(text):
            return (text,)
        if isinstance(text, str) and not text.strip():
            return (text,) if text else ()
        return split_placeholders(read_text(text, where))
    if kind in _IMAGE_PARTS:
        if not is_empty(item.get("text")):
            raise DataError(f"{where} has the key `text` in a part of type {kind!r}. Write the text as its own part.")
        _check_keys(item, PART_KEYS, _READ_IN_PART, where, "a part of a message")
        if not held:
            return (ImageSlot(),)
        if len(held) > 1 and not {"bytes", "path"} >= {*held}:
            raise DataError(f"{where} has an image under both `{held[0]}` and `{held[1]}`. Keep one of them.")
        value = {key: item[key] for key in held} if len(held) > 1 or held[0] in ("base64", "bytes") else item[held[0]]
        return (InlineImage(value, where),)
    raise DataError(
        f"{where} holds {shown(item) if kind is None else f'a part of type {shown(kind)}'}. "
        'Write {"type": "text", "text": "..."} or {"type": "image"}.'
    )
