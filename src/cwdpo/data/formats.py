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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cwdpo.data.image_roots import ImageRoots, read_image
from cwdpo.data.known_formats import REPEATS, Format, Record, find_format, is_list, parse_json
from cwdpo.data.messages import (
    PLACEHOLDER,
    Answer,
    InlineImage,
    Turn,
    is_empty,
    read_answer,
    read_last_answer,
    read_text,
    shown,
)
from cwdpo.data.rows import ImageSlot, ImageSource, Message, Row
from cwdpo.errors import DataError, shortened

OWN_COLUMNS = ("gentle_edit", "negative_sources", "lbar", "ches", "w_c")
"""Columns that ``cwdpo negatives`` writes about a row's answers, for people and pages to read."""

_OTHER_ANSWERS = ("gentle", "longer", "shorter")
_KWARGS = ("chat_template_kwargs", "template_kwargs")
_OPTIONAL = frozenset(
    ("images", "image", "gentle", "negatives", "longer", "shorter", "kind", "id", "system", *_KWARGS, *OWN_COLUMNS)
)
_MAY_BE_EMPTY = frozenset(
    (
        *("images", "image", "kind", "id", "idx", "system", *_KWARGS, "input", "history"),
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
    **dict.fromkeys(("accepted", "preferred", "winner", "choosen", "chosen_response", "response_chosen"), "chosen"),
    **dict.fromkeys(("dispreferred", "loser", "reject", "rejected_answer", "response_rejected"), "rejected"),
    **dict.fromkeys(("query", "user", "promt", "input_text", "text_input"), "prompt"),
}

_EXAMPLE = '{"images": ["a.png"], "prompt": "...", "chosen": "...", "rejected": "..."}'
_MESSAGE = '{"role": "user", "content": "..."}'


def format_of(record: Record) -> str:
    """Name of the format a record is written in, or ``unknown``.

    Example:
        >>> format_of({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"})
        'rlaif-v'
    """
    return describe(record)[0]


def format_keys(record: Record) -> tuple[str, ...]:
    """Keys that only the record's format reads, beside those that every format may have."""
    return _keys_of(find_format(_without_missing(record)))


def unread_columns(record: Record) -> list[str]:
    """Keys of a record that are not read, in the record's order."""
    return describe(record)[1]


def describe(record: Record) -> tuple[str, list[str]]:
    """What :func:`format_of` and :func:`unread_columns` say of a record, in one look."""
    record = _without_missing(record)
    known = find_format(record)
    return "unknown" if known is None else known.name, _unread(record, known)


def _unread(record: Record, known: Format | None) -> list[str]:
    """The same, of a record without missing values whose format is known."""
    read = _keys_of(known)
    return [key for key in record if key not in _OPTIONAL and key not in read]


def _keys_of(known: Format | None) -> tuple[str, ...]:
    return () if known is None else (*known.needs, *known.reads)


def row_from_record(record: Record, *, source: str, roots: ImageRoots) -> Row:
    """Read one record of any known format; a ``DataError`` where anything is missing, wrong, empty or ambiguous.

    Images are looked for in the ``roots``.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: a row is a {type(record).__name__}, but must be an object like {_EXAMPLE}.")
    given, record = record, _without_missing(record)
    known = _checked_format(record, source, missing=[key for key in given if key not in record])
    key = known.needs[0]
    turns, chosen, rejected = known.read(record, key, source)
    turns = _with_system(turns, record, source)
    where = f"{source}: `{key}`"
    _check_prompt(turns, where)
    prompt, images = _place_images(turns, record, roots, where, source)
    answers = [*rejected, *_negatives(record, source)]
    others = {name: read_answer(record[name], f"{source}: `{name}`") for name in _OTHER_ANSWERS if name in record}
    return Row(
        prompt=prompt,
        chosen=chosen.text,
        rejected=tuple(answer.text for answer in answers),
        **others,
        images=images,
        template_kwargs=_template_kwargs(record, source),
        has_reasoning=any(part.has_reasoning for part in (chosen, *answers)) or any(m.reasoning for m in prompt),
        kind=_label(record, "kind", source),
        id=_label(record, "id", source) or _label(record, "idx", source) or "",
        source=source,
    )


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
    return {
        key: value
        for key, value in record.items()
        if not (
            value is None
            or (isinstance(value, float) and math.isnan(value))
            or (key in _MAY_BE_EMPTY and is_empty(value))
        )
    }


def _checked_format(record: Record, source: str, *, missing: Sequence[str] = ()) -> Format:
    """Refuse what would be passed over in silence: unknown formats, misspelt keys, and media that are not images.

    ``missing`` are the keys that the row has without a value.
    """
    for key in _UNSUPPORTED:
        if key in record and not (key == "rejected_images" and record[key] == record.get("images")):
            raise DataError(f"{source}: the row has `{key}`, which is not supported. Take the key or the row out.")
    for one, other in (("image", "images"), _KWARGS):
        if one in record and other in record:
            raise DataError(f"{source}: the row has both `{one}` and `{other}`. Keep one of them.")
    known = find_format(record)
    if known is None:
        empty = [key for key in ("prompt", "chosen") if key in missing]
        if empty:
            raise DataError(f"{source}: `{empty[0]}` has no value (null). Write a text, or take the row out.")
        words = [f"`{key}` as `{word}`" for key in record if (word := _other_word(key)) not in (None, *record)]
        advice = f"Name {' and '.join(words)}, as in" if words else "Write"
        keys = shortened(", ".join(map(repr, record)) or "none", 240)
        raise DataError(f"{source}: the row's keys are {keys}, which is not a known format. {advice} {_EXAMPLE}.")
    if {*REPEATS} <= record.keys() and known.needs[0] in REPEATS:
        raise DataError(f"{source}: the row has both `conversations` and `messages`. Keep one of them.")
    if "rejected" in record and "rejected" not in (*known.needs, *known.reads):
        raise DataError(
            f"{source}: the row has `rejected` beside {' and '.join(map('`{}`'.format, known.needs))}, which hold the "
            "answers already. Take it out, or put it into the list `negatives`."
        )
    for key in _unread(record, known):
        near = _near_name(key)
        if near is not None:
            raise DataError(f"{source}: unknown key `{key}`. Did you mean `{near}`? Else give it another name.")
    return known


def _other_word(key: str) -> str | None:
    """The column that is meant by another word for it, or by other letters: `Chosen`, ` chosen`."""
    plain = key.strip().lower().replace(" ", "_")
    return _OTHER_WORDS.get(plain, plain if plain != key and plain in ("prompt", "chosen", "rejected") else None)


@lru_cache(maxsize=1000)  # for every row has the same columns
def _near_name(key: str) -> str | None:
    """The column that a misspelt name stands for."""
    near = difflib.get_close_matches(key, ("images", "image", "rejected", "gentle", "negatives"), 1, 0.82)
    return near[0] if near and key not in _IMAGE_NAMES else None


def _with_system(turns: list[Turn], record: Record, source: str) -> list[Turn]:
    if "system" not in record:
        return turns
    if turns and turns[0].role == "system":
        raise DataError(f"{source}: the row has both `system` and a system turn. Keep one of them.")
    return [Turn("system", (read_text(record["system"], f"{source}: `system`"),)), *turns]


def _negatives(record: Record, source: str) -> list[Answer]:
    value = parse_json(record.get("negatives", []))
    if not is_list(value):
        raise DataError(f'{source}: `negatives` must be a list of answers. Write ["..."]; one answer is `rejected`.')
    found = [read_last_answer(answer, f"{source}: `negatives`[{index}]") for index, answer in enumerate(value)]
    if any(before for before, _ in found):
        raise DataError(f"{source}: `negatives` must be single answers, without the turns before them.")
    return [answer for _, answer in found]


def _images(record: Record, roots: ImageRoots, source: str) -> list[ImageSource]:
    """The row's images, in order."""
    key = "images" if "images" in record else "image"
    value = record.get(key, [])
    value = parse_json(value)
    if not is_list(value):
        return [read_image(value, roots, source=source, where=f"`{key}`")]
    return [read_image(item, roots, source=source, where=f"`{key}`[{index}]") for index, item in enumerate(value)]


_NONE: Mapping[str, Any] = {}  # one for all rows, as most have none


def _template_kwargs(record: Record, source: str) -> Mapping[str, Any]:
    key = next((key for key in _KWARGS if key in record), None)
    if key is None:
        return _NONE
    value = parse_json(record[key])
    if not isinstance(value, Mapping):
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
    given = _images(record, roots, source)
    parts = [part for turn in turns for part in turn.parts]
    slots, inline = (sum(isinstance(part, kind) for part in parts) for kind in (ImageSlot, InlineImage))
    if not given and not inline:
        lost = [key for key in _IMAGE_NAMES if not is_empty(record.get(key))]
        if lost:
            raise DataError(f"{source}: unknown key `{lost[0]}`. Did you mean `image`? Else take it out.")
    if inline and given and not slots:
        raise DataError(f"{source}: the row has images both in its messages and in `images`. Keep one of them.")
    at_start: tuple[ImageSlot, ...] = ()
    if not slots and given:
        at_start = (ImageSlot(),) * len(given)
    elif slots != len(given):
        raise DataError(
            f"{where} marks {slots} image{'s' * (slots != 1)}, but the row has {len(given)}. Write one "
            f"{PLACEHOLDER} for each image, or none to have them stand at the start."
        )
    queue = iter(given)
    images: list[ImageSource] = []
    messages: list[Message] = []
    for turn in turns:
        own = turn.parts
        if at_start and turn.role == "user":
            own, at_start = (*at_start, *own), ()
        placed: list[str | ImageSlot] = []
        for part in own:
            if isinstance(part, InlineImage):
                images.append(
                    read_image(part.value, roots, source=source, where=part.where.removeprefix(f"{source}: "))
                )
            elif isinstance(part, ImageSlot):
                images.append(next(queue))
            placed.append(part if isinstance(part, str) else ImageSlot())
        messages.append(Message(turn.role, tuple(placed), turn.reasoning))
    return tuple(messages), tuple(images)
