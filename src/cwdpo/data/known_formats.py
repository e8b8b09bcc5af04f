"""How data sets of other programs write a row: which keys say so, and where the prompt and the answers are.

:mod:`cwdpo.data.formats` lists the formats, and makes rows of what is found here.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from cwdpo.data.messages import (
    Answer,
    Turn,
    answer_of,
    is_list,
    is_object,
    list_of_objects,
    parse_messages,
    read_answer,
    read_last_answer,
    read_text,
    read_turns,
    shown,
    split_placeholders,
)
from cwdpo.errors import DataError

Record: TypeAlias = Mapping[str, Any]

_DIALOGUE = re.compile(r"\A\s*Human:.*\n\n\s*Assistant:", re.DOTALL)
_SPEAKER = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")


class Found(NamedTuple):
    """What a format finds in a record: the turns of the prompt, the chosen answer, and rejected ones."""

    turns: list[Turn]
    chosen: Answer
    rejected: list[Answer]


@dataclass(frozen=True, eq=False)  # each is itself alone
class Format:
    """How one kind of record is recognised and read."""

    name: str
    needs: tuple[str, ...]
    """Keys that a record must have to be of this format, the prompt's first."""

    reads: tuple[str, ...]
    """Further keys that it reads, beside those that every format may have."""

    read: Callable[[Record, str, str], Found]
    """Gets the record without missing values, the prompt's key and the source."""

    fits: Callable[[Record], bool] = lambda record: True
    """What else must hold of the record."""


# Formats, one function each: the turns of the prompt and the answers, from a record without missing values.


def _read_pair(record: Record, key: str, source: str) -> Found:
    """A prompt and answers beside it, which may repeat the prompt's turns before them (UltraFeedback)."""
    if "chosen" not in record:
        raise DataError(f"{source}: the row has no `chosen`. Write the preferred answer there.")
    found = _with_answers(_read_dialogue(record[key], f"{source}: `{key}`"), record, source)
    for other in ("messages", "conversations"):
        if other in record and other != key:
            _check_repeats(read_turns(record[other], f"{source}: `{other}`"), found, f"{source}: `{key}` and `{other}`")
    return found


def _read_implicit(record: Record, key: str, source: str) -> Found:
    """Answers with the whole conversation before them."""
    found = _with_answers([], record, source)
    if not found.turns:
        raise DataError(
            f"{source}: the row has no prompt: neither `prompt`, nor turns before the answer in `chosen`. Write the "
            "question under `prompt`."
        )
    return found


def _read_chosen_last(record: Record, key: str, source: str) -> Found:
    """Turns that end with the chosen answer, and rejected answers to them or whole conversations that end with one."""
    turns, chosen = _split_last(read_turns(record[key], f"{source}: `{key}`"), key, source)
    rejected = []
    if "rejected_response" in record:
        value, where = record["rejected_response"], f"{source}: `rejected_response`"
        several = is_list(value) and all(isinstance(item, str) for item in value)
        rejected = [Answer(read_answer(item, where)) for item in (value if several else [value])]
    for other in ("rejected_messages", "rejected_conversations"):
        if other in record:
            before, answer = _split_last(read_turns(record[other], f"{source}: `{other}`"), other, source)
            if before and not _repeats(before, turns):
                raise _other_conversations(source)
            rejected.append(answer)
    return Found(turns, chosen, rejected)


def _read_text_column(record: Record, key: str, source: str) -> Found:
    inner = _inner(record)
    assert inner is not None, "the format fits only such records"
    return _read_pair(inner, "question", f"{source}: `{key}`")


def _read_completion(record: Record, key: str, source: str) -> Found:
    if "label" in record:
        raise DataError(
            f"{source}: the row has `completion` and `label`: single answers, good or bad, without a pair (KTO's "
            "form). Write pairs of `chosen` and `rejected`; for stage 1, take the bad ones and `label` out."
        )
    answers = {**record, "chosen": record["completion"]}
    turns = _read_dialogue(record[key], f"{source}: `{key}`")
    return _with_answers(turns, answers, source, names=("completion", "rejected"))


def _read_alpaca(record: Record, key: str, source: str) -> Found:
    """``history`` is pairs of a question and its answer; ``output`` is the answer, or the chosen and the rejected."""
    turns: list[Turn] = []
    history = parse_json(record.get("history", []))
    if not is_list(history):
        raise DataError(f"{source}: `history` is {shown(history)}, but must be a list of questions with answers.")
    for index, pair in enumerate(history):
        where = f"{source}: `history`[{index}]"
        if not is_list(pair) or len(pair) != 2:
            raise DataError(f'{where} is {shown(pair)}. Write a question and its answer, as ["...", "..."].')
        turns += [*read_turns(pair[0], where), Turn("assistant", (read_answer(pair[1], where),))]
    texts = [read_text(record[name], f"{source}: `{name}`") for name in (key, "input") if name in record]
    turns += read_turns("\n".join(texts), f"{source}: `{key}`")
    if "chosen" in record:
        return _with_answers(turns, record, source)
    output = record["output"]
    if is_list(output) and len(output) == 2:
        return _with_answers(turns, {"chosen": output[0], "rejected": output[1]}, source, names=("output", "output"))
    return _with_answers(turns, {"chosen": output}, source, names=("output",))


def _read_output_pair(record: Record, key: str, source: str) -> Found:
    """``preference`` is 1 or 2, the number of the better output."""
    better = str(record["preference"]).removesuffix(".0")
    if better not in ("1", "2"):
        raise DataError(
            f"{source}: `preference` is {shown(record['preference'])}, but must be 1 or 2, the better output."
        )
    answers = []
    for name in ("output_1", "output_2"):
        value = record[name]
        if is_object(value):  # from a model's name, which is not a role
            value = value.get("value", value.get("content"))
        answers.append(Answer(read_answer(value, f"{source}: `{name}`")))
    chosen, rejected = answers if better == "1" else answers[::-1]
    return Found(read_turns(record[key], f"{source}: `{key}`"), chosen, [rejected])


def _read_ranked(record: Record, key: str, source: str) -> Found:
    """Answers with ratings: the best is chosen, those with a lower mean rating are rejected, the worst first."""
    completions = record["completions"]
    if is_object(completions):
        completions = list_of_objects(completions, f"{source}: `completions`")
    if not is_list(completions):
        raise DataError(f"{source}: `completions` is {shown(completions)}, but must be a list of answers.")
    rated = []
    for index, completion in enumerate(completions):
        where = f"{source}: `completions`[{index}]"
        if not is_object(completion) or "response" not in completion:
            raise DataError(f'{where} is {shown(completion)}. Write {{"response": "...", "annotations": ...}}.')
        answer = Answer(read_answer(completion["response"], f"{where} `response`"))
        rated.append((_mean_rating(completion.get("annotations"), where), answer))
    best = max((rating for rating, _ in rated), default=0.0)
    worse = sorted((pair for pair in rated if pair[0] < best), key=lambda pair: pair[0])
    if not worse:
        raise DataError(
            f"{source}: no two `completions` differ in their mean rating, so none is preferred. Take the row out."
        )
    chosen = next(answer for rating, answer in rated if rating == best)
    return Found(read_turns(record[key], f"{source}: `{key}`"), chosen, [answer for _, answer in worse])


def _is_conversation(record: Record) -> bool:
    return not isinstance(parse_messages(record["chosen"], "`chosen`"), str)


REPEATS = ("messages", "conversations")  # of UltraFeedback, which says in them what the other columns say
FORMATS = (
    Format("povid", ("conversations", "rejected_conversations"), (), _read_chosen_last),
    Format("ms-swift", ("messages", "rejected_messages"), ("rejected_response",), _read_chosen_last),
    Format("llava-rlhf", ("conversations", "output_1", "output_2", "preference"), (), _read_output_pair),
    Format("vlfeedback", ("prompt", "completions"), (), _read_ranked, lambda record: "chosen" not in record),
    Format("vlfeedback", ("instruction", "completions"), (), _read_ranked, lambda record: "chosen" not in record),
    Format("hh", ("prompt", "chosen"), ("rejected", *REPEATS), _read_pair, lambda r: _is_dialogue(r["prompt"])),
    Format(
        "flat",
        ("prompt", "chosen", "image"),
        ("rejected", *REPEATS),
        _read_pair,
        lambda r: isinstance(r["prompt"], str),
    ),
    Format("trl", ("prompt", "chosen"), ("rejected", *REPEATS), _read_pair),
    Format("llamafactory", ("conversations", "chosen"), ("rejected",), _read_pair),
    Format("llamafactory", ("messages", "chosen"), ("rejected",), _read_pair),
    Format("llamafactory", ("conversations", "rejected"), (), _read_pair),
    Format("llamafactory", ("messages", "rejected"), (), _read_pair),
    Format("llava", ("conversations",), ("rejected_response",), _read_chosen_last),
    Format("ms-swift", ("messages",), ("rejected_response",), _read_chosen_last),
    Format("rlaif-v", ("question", "chosen"), ("rejected", "idx"), _read_pair),
    Format("rlhf-v", ("text",), ("idx",), _read_text_column, lambda record: _inner(record) is not None),
    Format("trl-completion", ("prompt", "completion"), ("rejected", "label"), _read_completion),
    Format("alpaca", ("instruction", "chosen"), ("rejected", "input", "history"), _read_alpaca),
    Format("alpaca", ("instruction", "output"), ("input", "history"), _read_alpaca),
    Format("hh", ("chosen",), ("rejected",), _read_implicit, lambda record: _is_dialogue(record["chosen"])),
    Format("trl-implicit", ("chosen",), ("rejected",), _read_implicit, _is_conversation),
)
"""In this order: a record is of the first whose keys it has."""


def find_format(record: Record) -> Format | None:
    """The format of a record without missing values; None where it is of none."""
    for known in with_keys(tuple(record)):
        if known.fits(record):
            return known
    return None


@lru_cache(maxsize=1000)  # the rows of a data set mostly have the same keys
def with_keys(keys: tuple[str, ...]) -> tuple[Format, ...]:
    """Formats whose keys are all there; which of them a record is of, its values say."""
    return tuple(known for known in FORMATS if {*known.needs} <= {*keys})


def _with_answers(
    turns: list[Turn], record: Record, source: str, names: Sequence[str] = ("chosen", "rejected")
) -> Found:
    """The prompt with ``chosen`` and ``rejected``, which messages call by these names."""
    leads, answers = [], []
    for key, name in zip(("chosen", "rejected"), names, strict=False):
        if key in record:
            before, answer = _read_last(record[key], f"{source}: `{name}`")
            answers.append(answer)
            if before:
                leads.append(before)
    if not leads:
        return Found(turns, answers[0], answers[1:])
    lead, *others = leads
    if any(not _same(lead, other) for other in others):
        raise _other_conversations(source)
    if turns and not _repeats(turns, lead):
        raise DataError(
            f"{source}: the turns before the answer in `{names[0]}` are not those of the prompt. Write the answer "
            "alone, or the same turns."
        )
    return Found(max(lead, turns, key=_amount), answers[0], answers[1:])


def _read_last(value: Any, where: str) -> tuple[list[Turn], Answer]:
    if not _is_dialogue(value):
        return read_last_answer(value, where)
    *before, last = _dialogue(value, where)
    return before, answer_of(last, where)


def _read_dialogue(value: Any, where: str) -> list[Turn]:
    """Turns of a prompt; of a dialogue in text without the empty turn that asks for the answer."""
    if not _is_dialogue(value):
        return read_turns(value, where)
    return _dialogue(re.sub(r"\s*Assistant:\s*\Z", "", value), where)


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, str) and "Human:" in value and _DIALOGUE.match(value) is not None


def _dialogue(text: str, where: str) -> list[Turn]:
    """Turns of a dialogue in text, as HH writes it: ``Human:`` and ``Assistant:`` after blank lines."""
    _, *pieces = _SPEAKER.split(text)
    return [
        turn
        for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)
        for turn in (_speak("user" if speaker == "Human" else "assistant", said, where),)
    ]


def _speak(role: str, said: str, where: str) -> Turn:
    return Turn(role, split_placeholders(read_text(said.strip(), f"{where}, a turn of the dialogue,")))


def _split_last(turns: list[Turn], key: str, source: str) -> tuple[list[Turn], Answer]:
    """The turns before the last, and the last, which is the answer."""
    if not turns or turns[-1].role != "assistant":
        raise DataError(
            f"{source}: `{key}` must end with the assistant's turn, which is the answer. Add that turn, or write the "
            "answers under `chosen` and `rejected`."
        )
    return turns[:-1], answer_of(turns[-1], f"{source}: the last turn of `{key}`")


def _same(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Whether two conversations say the same; marks of images may stand in one of them alone."""
    return [(turn.role, turn.text.strip()) for turn in turns] == [(turn.role, turn.text.strip()) for turn in others]


def _repeats(turns: Sequence[Turn], others: Sequence[Turn]) -> bool:
    """Whether one of two conversations has all turns of the other, in their order."""
    shorter, longer = sorted((turns, others), key=len)
    left = iter(longer)
    return all(any(_same([turn], [other]) for other in left) for turn in shorter)


def _amount(turns: Sequence[Turn]) -> tuple[int, int]:
    """Turns, and images among them."""
    return len(turns), sum(not isinstance(part, str) for turn in turns for part in turn.parts)


def _check_repeats(turns: Sequence[Turn], found: Found, where: str) -> None:
    """Refuse a second conversation in a row that says something else than its prompt and its chosen answer."""
    whole = [*found.turns, Turn("assistant", (found.chosen.text,))]
    if not (_same(turns, found.turns) or _same(turns, whole) or (turns and _repeats(turns, whole))):
        raise DataError(f"{where} are different conversations. Keep one of them.")


def _other_conversations(source: str) -> DataError:
    return DataError(
        f"{source}: the rejected answer belongs to another conversation than the chosen one: up to the last turn they "
        "must be the same. Cut both before the turn in which they begin to differ, or take the row out."
    )


def _inner(record: Record) -> Record | None:
    """The question and the answers in a column ``text``; None where it holds something else."""
    text = record["text"]
    if isinstance(text, str) and text.lstrip().startswith("{"):
        try:
            text = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return text if is_object(text) and {"question", "chosen"} <= text.keys() else None


def _mean_rating(annotations: Any, where: str) -> float:
    """Mean over the aspects of ``annotations`` (helpfulness and so on) that have a rating."""
    values = annotations.values() if is_object(annotations) else ()
    given = [value.get("Rating", value.get("rating")) for value in values if is_object(value)]
    try:
        numbers = [float(value) for value in given if value not in (None, "N/A")]
        mean = sum(numbers) / len(numbers)
        if not math.isfinite(mean):
            raise ValueError(mean)
        return mean
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as problem:
        raise DataError(
            f"{where} has no ratings under `annotations`. Take the answer out, or write numbers."
        ) from problem


def parse_json(value: Any) -> Any:
    """A list or an object that stands as JSON in a text, as in the cell of a table; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
