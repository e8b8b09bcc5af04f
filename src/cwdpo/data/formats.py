"""Row formats: recognise how a data set writes its rows, and read each into the one form of :class:`Row`.

========================  ==========================================================================================
``trl``                   ``prompt`` (text or messages), ``chosen``, ``rejected``, ``images``: the canonical form
``flat``                  ``prompt``, ``chosen``, ``rejected`` as text, and ``image``
``trl-implicit``          ``chosen`` and ``rejected`` as whole conversations, which begin with the prompt
``trl-completion``        ``prompt``, ``completion``: for stage 1
``hh``                    ``chosen`` and ``rejected`` as text with ``Human:`` and ``Assistant:`` turns
``llamafactory``          ``conversations`` (or ``messages``) up to the user's turn, ``chosen``, ``rejected``
``alpaca``                ``instruction``, ``input``, ``history``, ``chosen`` and ``rejected``, or ``output``
``ms-swift``              ``messages`` with the chosen answer last, and ``rejected_response`` or ``rejected_messages``
``rlaif-v``               ``question``, ``chosen``, ``rejected``, ``image``
``rlhf-v``                the same as JSON in a column ``text``
``povid``                 ``conversations`` with the chosen answer last, and ``rejected_conversations``
``llava-rlhf``            ``conversations``, ``output_1``, ``output_2`` and ``preference``
``vlfeedback``            ``prompt`` and ``completions`` with ratings
``llava``                 ``conversations`` with the chosen answer last; no rejected answer, so for stage 1
========================  ==========================================================================================

In every format ``gentle``, ``negatives``, ``longer``, ``shorter`` (paraphrases of the chosen answer, for probes),
``kind``, ``id``, ``system`` and ``chat_template_kwargs`` may be added, ``image`` may stand for ``images``, and a value
of null is as good as none. Of a conversation only the last assistant turn is an answer to learn from; the earlier ones
are part of the prompt.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from cwdpo.data.image_roots import ImageRoots, read_image
from cwdpo.data.known_formats import FORMATS, REPEATS, Format, Record, find_format, parse_json, with_keys
from cwdpo.data.messages import (
    PLACEHOLDER,
    Answer,
    InlineImage,
    Turn,
    is_empty,
    is_list,
    is_object,
    is_plain,
    read_answer,
    read_last_answer,
    read_text,
    shown,
)
from cwdpo.data.rows import ImageSlot, ImageSource, Message, Row
from cwdpo.errors import DataError, shortened

OWN_COLUMNS = ("gentle_edit", "negative_sources", "lbar", "ches", "w_c")
"""Columns that ``cwdpo negatives`` writes about a row's answers, for people and pages to read."""

_IMAGES = ("images", "image")
_IDS = ("id", "idx")
_OTHER_ANSWERS = ("gentle", "longer", "shorter")
_KWARGS = ("chat_template_kwargs", "template_kwargs")
_OPTIONAL = frozenset(
    (*_IMAGES, "gentle", "negatives", "longer", "shorter", "kind", "id", "system", *_KWARGS, *OWN_COLUMNS)
)
_MAY_BE_EMPTY = frozenset(
    (
        *(*_IMAGES, "kind", *_IDS, "system", *_KWARGS, "input", "history"),
        *("tools", "videos", "video", "audios", "audio", "rejected_images"),
    )
)
"""Columns in which an empty text, list or object is as good as none; of an answer it is a mistake."""

_IMAGE_NAMES = (
    *("img", "imgs", "image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls"),
    *("picture", "pictures", "photo", "photos", "pil_image"),
)
_UNSUPPORTED = ("videos", "video", "audios", "audio", "tools", "rejected_images")
_OTHER_WORDS = {
    **dict.fromkeys(("accepted", "preferred", "win", "winner", "choosen", "chosen_answer", "good_answer"), "chosen"),
    **dict.fromkeys(("chosen_response", "response_chosen", "better", "positive", "good", "best_answer"), "chosen"),
    **dict.fromkeys(("answer", "response", "output", "completion", "caption", "target", "label"), "chosen"),
    **dict.fromkeys(("dispreferred", "lose", "loser", "reject", "rejected_answer", "response_rejected"), "rejected"),
    **dict.fromkeys(("rejected_response", "bad_answer", "worse", "negative", "bad", "wrong_answer"), "rejected"),
    **dict.fromkeys(("query", "user", "promt", "input_text", "text_input", "question", "instruction"), "prompt"),
}
"""Of rows that are of no format; the first of a column's words counts."""

_OWN_WORDS = ("prompt", "chosen", "rejected", "image", "images")

_EXAMPLE = '{"images": ["a.png"], "prompt": "...", "chosen": "...", "rejected": "..."}'
_HEADER = ("image", "prompt", "chosen", "rejected")
_MESSAGE = '{"role": "user", "content": "..."}'


def format_of(record: Record) -> str:
    """Name of the format a record is written in, or ``unknown``.

    Example:
        >>> format_of({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"})
        'rlaif-v'
    """
    known = find_format(_without_missing(record))
    return "unknown" if known is None else known.name


def format_keys(record: Record) -> tuple[str, ...]:
    """Keys that only the record's format reads, beside those that every format may have."""
    return _keys_of(find_format(_without_missing(record)))


def unread_columns(record: Record) -> list[str]:
    """Keys of a record that are not read, in the record's order."""
    record = _without_missing(record)
    return list(_unread(tuple(record), find_format(record)))


@lru_cache(maxsize=1000)  # the rows of a data set mostly have the same keys
def _unread(keys: tuple[str, ...], known: Format | None) -> tuple[str, ...]:
    """The same, of the keys of a record without missing values whose format is known."""
    read = _keys_of(known)
    return tuple(key for key in keys if key not in _OPTIONAL and key not in read)


def _keys_of(known: Format | None) -> tuple[str, ...]:
    return () if known is None else (*known.needs, *known.reads)


class Described(NamedTuple):
    """A row with what its record says of itself."""

    row: Row
    format: str
    unread: Sequence[str]
    """Keys that are not read, in the record's order."""


def row_from_record(record: Record, *, source: str, roots: ImageRoots) -> Row:
    """Read one record of any known format; a ``DataError`` where anything is missing, wrong, empty or ambiguous.

    Images are looked for in the ``roots``.
    """
    return read_record(record, source=source, roots=roots).row


def read_record(record: Record, *, source: str, roots: ImageRoots) -> Described:
    """As :func:`row_from_record`, with what :func:`format_of` and :func:`unread_columns` say."""
    if not is_object(record):
        raise DataError(f"{source}: a row is a {type(record).__name__}, but must be an object like {_EXAMPLE}.")
    described = _read_usual(record, source, roots)
    if described is not None:
        return described
    whole = _without_missing(record)
    described = None if whole is record else _read_usual(whole, source, roots)
    return described or _read_any(whole, [key for key in record if key not in whole], source, roots)


class _Usual(NamedTuple):
    """How rows with certain keys are read, where their texts are plain and no value is missing."""

    texts: tuple[str, ...]
    """Keys of the prompt and of all answers."""

    others: tuple[str, ...]
    """Those of them that are neither prompt nor chosen nor rejected."""

    rest: tuple[str, ...]
    """All other keys."""

    image: str | None
    kind: str | None
    id: str | None
    """The keys of these, if there are any."""

    format: str
    unread: tuple[str, ...]


@lru_cache(maxsize=1000)  # the rows of a data set mostly have the same keys
def _usual_form(keys: tuple[str, ...]) -> _Usual | None:
    """Of rows with a question and answers beside it, in any format that has no more to it than that; else None."""
    known = next((each for each in with_keys(keys) if each.name != "hh"), None)  # a plain text is no dialogue
    if known is None or known.name not in ("trl", "flat", "rlaif-v"):
        return None
    image, kind, name = (next((k for k in names if k in keys), None) for names in (_IMAGES, ("kind",), _IDS))
    more = ("system", "negatives", *_KWARGS, *REPEATS, *_UNSUPPORTED, *(_IMAGE_NAMES if image is None else ()))
    if not {*more}.isdisjoint(keys) or _wrong_keys(keys, known) is not None:
        return None
    others = tuple(name for name in _OTHER_ANSWERS if name in keys)
    texts = (known.needs[0], "chosen", *(["rejected"] if "rejected" in keys else []), *others)
    rest = tuple(key for key in keys if key not in texts)
    return _Usual(texts, others, rest, image, kind, name, known.name, _unread(keys, known))


def _read_usual(record: Record, source: str, roots: ImageRoots) -> Described | None:
    """The same as :func:`_read_any`, in a third of its time, as it makes no turns, parts and answers on the way; None
    where the record has anything unusual. Most rows of large data sets have not. A test holds the two to each other on
    random rows."""
    usual = _usual_form(tuple(record))
    if usual is None:
        return None
    for key in usual.texts:
        text = record[key]
        if not is_plain(text) or text.startswith("Human:"):
            return None
    for key in usual.rest:
        if _is_missing(key, record[key]):
            return None
    images = () if usual.image is None else _images(record, usual.image, roots, source)
    row = Row(
        prompt=(Message("user", (*((_SLOT,) * len(images)), record[usual.texts[0]])),),
        chosen=record["chosen"],
        rejected=(record["rejected"],) if "rejected" in record else (),
        **{name: record[name] for name in usual.others},
        images=images,
        template_kwargs=_NONE,
        kind=None if usual.kind is None else _label(record, usual.kind, source),
        id="" if usual.id is None else _label(record, usual.id, source) or "",
        source=source,
    )
    return Described(row, usual.format, usual.unread)


def _read_any(record: Record, missing: Sequence[str], source: str, roots: ImageRoots) -> Described:
    """A record without missing values; ``missing`` are the keys of those."""
    keys = tuple(record)
    known = _checked_format(record, keys, source, missing)
    key = known.needs[0]
    turns, chosen, rejected = known.read(record, key, source)
    if "system" in record:
        turns = _with_system(turns, record, source)
    where = f"{source}: `{key}`"
    _check_prompt(turns, where)
    prompt, images = _place_images(turns, record, roots, where, source)
    answers = [*rejected, *_negatives(record, source)] if "negatives" in record else rejected
    others = {name: read_answer(record[name], f"{source}: `{name}`") for name in _OTHER_ANSWERS if name in record}
    row = Row(
        prompt=prompt,
        chosen=chosen.text,
        rejected=tuple([answer.text for answer in answers]),
        **others,
        images=images,
        template_kwargs=_template_kwargs(record, source),
        has_reasoning=any([part.has_reasoning for part in (chosen, *answers)])
        or any([message.reasoning for message in prompt]),
        kind=_label(record, "kind", source),
        id=next((_label(record, key, source) for key in _IDS if key in record), None) or "",
        source=source,
    )
    return Described(row, known.name, _unread(keys, known))


def plain_record(row: Row) -> dict[str, Any]:
    """Prompt and chosen answer of a row in the canonical form, for rows whose own has no place for new answers."""
    turns = []
    for message in row.prompt:
        parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in message.parts]
        reasoning = {} if message.reasoning is None else {"reasoning_content": message.reasoning}
        turns.append({"role": message.role, "content": parts, **reasoning})
    return {"prompt": turns, "chosen": row.chosen}


def _without_missing(record: Record) -> Record:
    """The record without null, without NaN (a table's null), and without empty values where they mean nothing."""
    missing = [key for key, value in record.items() if _is_missing(key, value)]
    return {key: value for key, value in record.items() if key not in missing} if missing else record


def _is_missing(key: str, value: object) -> bool:
    if key in _MAY_BE_EMPTY:
        return is_empty(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


def _checked_format(record: Record, keys: tuple[str, ...], source: str, missing: Sequence[str]) -> Format:
    """Refuse what would be passed over in silence: unknown formats, misspelt keys, and media that are not images.

    ``missing`` are the keys that the row has without a value.
    """
    for key in _unsupported(keys):
        if not (key == "rejected_images" and record[key] == record.get("images")):
            raise DataError(f"{source}: the row has `{key}`, which is not supported. Take the key or the row out.")
    known = find_format(record)
    if known is None:
        for key in ("prompt", "chosen"):
            if key in missing:
                raise DataError(f"{source}: `{key}` has no value (null or NaN). Write a text, or take the row out.")
    wrong = _wrong_keys(keys, known)
    if known is None or wrong is not None:
        raise DataError(f"{source}: {_in_a_table(str(wrong), keys, source)}")
    return known


def _in_a_table(wrong: str, keys: Sequence[str], source: str) -> str:
    """What is wrong with keys, where they are the first line of a table: it shows a header, or says that there is
    none."""
    if not re.search(r"\.[ct]sv(\.gz)?:\d+$", source) or _EXAMPLE not in wrong:
        return wrong
    header = f"the header {(',' if '.csv' in source else chr(9)).join(_HEADER)}"
    read = {*_OPTIONAL, *_IMAGE_NAMES, *_OTHER_WORDS, *(name for known in FORMATS for name in _keys_of(known))}
    if {key.strip().lower().replace(" ", "_") for key in keys}.isdisjoint(read):
        return f"line 1, {shortened(', '.join(keys))!r}, has no name of a column. Put {header} before it."
    return wrong.replace(_EXAMPLE, header)


def _other_word(key: str) -> str | None:
    """The column that is meant by another word for it, or by other letters: `Chosen`, ` chosen`."""
    plain = key.strip().lower().replace(" ", "_")
    return _OTHER_WORDS.get(plain, plain if plain != key and plain in _OWN_WORDS else None)


@lru_cache(maxsize=1000)  # the rows of a data set mostly have the same keys
def _unsupported(keys: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in _UNSUPPORTED if key in keys)


@lru_cache(maxsize=1000)
def _wrong_keys(keys: tuple[str, ...], known: Format | None) -> str | None:
    """What is wrong with the keys of a record of a format, as a message says it; None if nothing is."""
    for one, other in (("image", "images"), _KWARGS):
        if one in keys and other in keys:
            return f"the row has both `{one}` and `{other}`. Keep one of them."
    if known is None:
        meant = {word: key for key in reversed(keys) if (word := _other_word(key)) not in (None, *keys)}
        words = [f"`{key}` as `{word}`" for word, key in reversed(meant.items())]
        advice = f"Name {' and '.join(words)}, as in" if words else "Write"
        missing = "chosen" if "rejected" in keys else "prompt"
        known_part = not words and missing not in keys and not {"chosen", "rejected"}.isdisjoint(keys)
        first = f"`{missing}` is missing; " if known_part else ""
        shown_keys = shortened(", ".join(map(repr, keys)) or "none", 240)
        return f"{first}the row's keys are {shown_keys}, which is not a known format. {advice} {_EXAMPLE}."
    if {*REPEATS} <= {*keys} and known.needs[0] in REPEATS:
        return "the row has both `conversations` and `messages`. Keep one of them."
    if "rejected" in keys and "rejected" not in (*known.needs, *known.reads):
        return (
            f"the row has `rejected` beside {' and '.join(map('`{}`'.format, known.needs))}, which hold the "
            "answers already. Take it out, or put it into the list `negatives`."
        )
    for key in _unread(keys, known):
        near = _near_name(key)
        if near is not None:
            return f"unknown key `{key}`. Did you mean `{near}`? Else give it another name."
    return None


@lru_cache(maxsize=1000)
def _near_name(key: str) -> str | None:
    """The column that a misspelt name stands for."""
    near = difflib.get_close_matches(key, ("images", "image", "rejected", "gentle", "negatives"), 1, 0.82)
    return near[0] if near and key not in _IMAGE_NAMES else None


def _with_system(turns: list[Turn], record: Record, source: str) -> list[Turn]:
    if turns and turns[0].role == "system":
        raise DataError(f"{source}: the row has both `system` and a system turn. Keep one of them.")
    return [Turn("system", (read_text(record["system"], f"{source}: `system`"),)), *turns]


def _negatives(record: Record, source: str) -> list[Answer]:
    value = parse_json(record["negatives"])
    if not is_list(value):
        raise DataError(f'{source}: `negatives` must be a list of answers. Write ["..."]; one answer is `rejected`.')
    found = [read_last_answer(answer, f"{source}: `negatives`[{index}]") for index, answer in enumerate(value)]
    if any(before for before, _ in found):
        raise DataError(f"{source}: `negatives` must be single answers, without the turns before them.")
    return [answer for _, answer in found]


def _images(record: Record, key: str, roots: ImageRoots, source: str) -> tuple[ImageSource, ...]:
    """The row's images, in order."""
    value = parse_json(record[key])
    items, is_one = (value, False) if is_list(value) else ([value], True)
    known = roots.known(items)
    if known is not None:
        return known
    places = [f"`{key}`" if is_one else f"`{key}`[{i}]" for i in range(len(items))]
    return tuple([read_image(item, roots, source=source, where=w) for item, w in zip(items, places, strict=True)])


_SLOT = ImageSlot()  # one for all rows, as all are alike
_NONE: Mapping[str, Any] = {}  # one for all rows, as most have none


def _template_kwargs(record: Record, source: str) -> Mapping[str, Any]:
    key = next((key for key in _KWARGS if key in record), None)
    if key is None:
        return _NONE
    value = parse_json(record[key])
    if not is_object(value):
        raise DataError(f'{source}: `{key}` is {shown(value)}. Write an object such as {{"enable_thinking": false}}.')
    return {str(name): item for name, item in value.items() if item is not None}


def _label(record: Record, key: str, source: str) -> str | None:
    """A short name, given as text or as a number."""
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{source}: `{key}` is a {type(value).__name__}, but must be text or a number.")


def _check_prompt(turns: Sequence[Turn], where: str) -> None:
    """A prompt may begin with a system message and must end with the user's; none of it is learned."""
    if not turns or turns[-1].role != "user":
        last = f"ends with a turn of role {turns[-1].role!r}" if turns else "holds no turn"
        raise DataError(
            f"{where} {last}, but an answer must follow a user's turn. End it with {_MESSAGE}; "
            "the assistant's last turn is the answer."
        )
    for index, turn in enumerate(turns):
        if turn.role == "system" and index:
            raise DataError(f"{where}[{index}] is a system turn. Put it first.")
        if turn.trained:
            raise DataError(
                f"{where}[{index}] says that it is to be learned (`loss`, `weight` or `train`), but only the last "
                "answer is. Take the key out, or make a row of its own that ends with this turn."
            )


def _place_images(
    turns: Sequence[Turn], record: Record, roots: ImageRoots, where: str, source: str
) -> tuple[tuple[Message, ...], tuple[ImageSource, ...]]:
    """Give every image a slot: where the text marks it, else at the start of the first user turn, as TRL does."""
    key = next((key for key in _IMAGES if key in record), None)
    given = () if key is None else _images(record, key, roots, source)
    marks = [part for turn in turns for part in turn.parts if not isinstance(part, str)]
    slots = len([part for part in marks if isinstance(part, ImageSlot)])
    inline = len(marks) - slots
    if not given and not inline:
        lost = [key for key in _IMAGE_NAMES if key in record and not is_empty(record[key])]
        if lost:
            meant = "images" if lost[0].endswith("s") else "image"
            raise DataError(f"{source}: unknown key `{lost[0]}`. Did you mean `{meant}`? Else take it out.")
    if inline and given and not slots:
        raise DataError(f"{source}: the row has images both in its messages and in `images`. Keep one of them.")
    at_start: tuple[ImageSlot, ...] = ()
    if not slots and given:
        at_start = (_SLOT,) * len(given)
    elif slots != len(given):
        raise DataError(
            f"{where} marks {slots} image{'s' * (slots != 1)}, but the row has {len(given)}. Write one "
            f"{PLACEHOLDER} for each image, or none to have them stand at the start."
        )
    messages: list[Message] = []
    for turn in turns:
        parts: tuple[Any, ...] = turn.parts
        if inline and turn.has_images:
            parts = tuple([part if isinstance(part, str) else _SLOT for part in parts])
        if at_start and turn.role == "user":
            parts, at_start = (*at_start, *parts), ()
        messages.append(Message(turn.role, parts, turn.reasoning))
    if not inline:
        return tuple(messages), given
    queue = iter(given)
    images = [
        read_image(part.value, roots, source=source, where=part.where.removeprefix(f"{source}: "))
        if isinstance(part, InlineImage)
        else next(queue)
        for part in marks
    ]
    return tuple(messages), tuple(images)
