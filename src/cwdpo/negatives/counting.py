"""Edits of counts and numbers: "two dogs", "a dog", "3 dogs", "10:30", "4.5"."""

import re
from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like, plural_of
from cwdpo.negatives.lexicon import Sense
from cwdpo.negatives.reading_text import NUMBER_WORDS, Phrase, Reading
from cwdpo.negatives.substitution import is_certain, span_text

_NOT_COUNTS = frozenset({"hundred", "thousand", "million", "dozen", "thirds", "percent", "half", "by", "or", "to"})
_NOT_BEFORE = frozenset(
    {"or", "to", "between", "number", "than", "point", "hundred", "twenty", "thirty", "times", "and"}
)
_AGREEMENT = {"is": "are", "was": "were", "has": "have"}
_SINGULAR_LATER = frozenset(
    {"is", "was", "has", "does", "it", "its", "itself", "he", "his", "him", "she", "her", "himself", "herself", "that"}
    | {"who", "which", "one", "other", "another", "each"}
)
_ADJECTIVES = ("colour", "size", "material", "age", "state")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_MOST_TARGETS = 4


def counts(reading: Reading) -> Iterator[Edit]:
    """Counts in words and digits; where there are none, one thing becomes two or three."""
    exact = [*_number_words(reading), *_digits(reading, counting=True), *_singles(reading, ("one",))]
    yield from exact or _singles(reading, ("a", "an"))


def numbers(reading: Reading) -> Iterator[Edit]:
    """Numbers that count nothing: times, prices, labels, hours."""
    yield from _digits(reading, counting=False)
    for index, token in enumerate(reading.tokens):
        after = reading.neighbour(index, 1)
        hour, dash, rest = token.lower.partition("-")
        is_hour = after is not None and reading.tokens[after].lower in ("o'clock", "o\u2019clock")
        if hour in NUMBER_WORDS and (is_hour or (dash and rest == "thirty")):
            for other in NUMBER_WORDS:
                if other != hour:
                    yield Edit("number", (Part(token.start, token.end, cased_like(token.text, other + dash + rest)),))


def _number_words(reading: Reading) -> Iterator[Edit]:
    for index, token in enumerate(reading.tokens):
        if token.lower not in NUMBER_WORDS[1:] or _is_kept(index, reading):
            continue
        before, after = reading.neighbour(index, -1), reading.neighbour(index, 1)
        next_word = "" if after is None else reading.tokens[after].lower
        previous = "" if before is None else reading.tokens[before].lower
        if previous in _NOT_BEFORE or next_word in _NOT_COUNTS or next_word in ("o'clock", "o\u2019clock", "and", "-"):
            continue
        for number in _near(NUMBER_WORDS.index(token.lower) + 1):
            if number <= len(NUMBER_WORDS):
                word = cased_like(token.text, NUMBER_WORDS[number - 1])
                yield Edit("count", (Part(token.start, token.end, word),))


def _near(number: int) -> list[int]:
    """Counts next to a count, never one: its noun would have to change."""
    return [other for other in (number - 2, number - 1, number + 1, number + 2) if other >= 2]


def _digits(reading: Reading, *, counting: bool) -> Iterator[Edit]:
    text = reading.text
    for index, token in enumerate(reading.tokens):
        if not token.lower[0].isdigit() or _is_joined(token.start, token.end, text) or _is_kept(index, reading):
            continue
        after = reading.neighbour(index, 1)
        plain = token.text.isdecimal() and token.text.isascii() and not token.text.startswith("0")
        sign = text[token.start - 1 : token.start] in ("$", "\u20ac", "\u00a3", "#") or text[
            token.end : token.end + 1
        ] in (
            "%",
            "\u00b0",
        )
        is_unit = after is not None and reading.fits("<number>", after, "") is False and _is_unit(after, reading)
        is_count = plain and not sign and 2 <= int(token.text) < 1000 and after is not None
        is_count = is_count and after is not None and reading.tokens[after].lower.endswith("s") and not is_unit
        if is_count == counting:
            targets = map(str, _near(int(token.text))) if is_count else _other_numbers(token.text)
            for target in targets:
                yield Edit("count" if is_count else "number", (Part(token.start, token.end, target),))


def _is_unit(index: int, reading: Reading) -> bool:
    phrase = reading.at.get(index)
    return phrase is not None and any(sense.group.kind == "number" for sense in phrase.senses)


def _other_numbers(number: str) -> list[str]:
    """A few numbers that could stand in the place of one, written as it is."""
    time = _TIME.fullmatch(number)
    if time:
        hour, width = int(time[1]), len(time[1])
        hours = [h for h in (hour - 2, hour - 1, hour + 1, hour + 2) if (1 <= h <= 12 if hour <= 12 else 13 <= h <= 23)]
        return [f"{h:0{width}d}:{time[2]}" for h in hours]
    if not number.isascii() or "/" in number or ":" in number:
        return []
    place = max(i for i, digit in enumerate(number) if digit.isdigit())
    if len(re.sub(r"\D", "", number)) > 1 and number[place] == "0":
        place = 0  # 50, 100, 2,000: round numbers stay round
    digit = int(number[place])
    least = 1 if place == 0 and (len(number) > 1 or digit > 0) else 0
    others = [d for d in (digit - 2, digit - 1, digit + 1, digit + 2) if least <= d <= 9]
    return [f"{number[:place]}{d}{number[place + 1 :]}" for d in others][:_MOST_TARGETS]


def _is_joined(start: int, end: int, text: str) -> bool:
    """Whether digits are part of something longer: a date, a name, a web address."""
    before, after = text[max(start - 1, 0) : start], text[end : end + 1]
    return bool(re.match(r"[\w/\-:.,@&]", before)) or bool(re.match(r"[\w/\-@&]", after))


def _singles(reading: Reading, articles: tuple[str, ...]) -> Iterator[Edit]:
    """ "a dog" becomes "two dogs", where no later word needs the one."""
    for index, token in enumerate(reading.tokens):
        if token.lower not in articles or _is_kept(index, reading) or not _may_be_many(index, reading):
            continue
        found = _noun_after(index, reading)
        if found is None:
            continue
        phrase, sense = found
        start, end = reading.tokens[phrase.first].start, reading.tokens[phrase.last - 1].end
        if span_text(phrase, reading) != span_text(phrase, reading).lower():
            continue
        noun = plural_of(sense.base, reading.lexicon.plurals)
        for number in ("two", "three"):
            head = cased_like(token.text, number) + reading.text[token.end : start] + noun
            yield Edit("count", (Part(token.start, *_agreeing(end, phrase, head, reading)),))


def _agreeing(end: int, phrase: Phrase, head: str, reading: Reading) -> tuple[int, str]:
    after = reading.neighbour(phrase.last - 1, 1)
    if after is None or reading.tokens[after].lower not in _AGREEMENT:
        return end, head
    verb = reading.tokens[after]
    return verb.end, head + reading.text[end : verb.start] + _AGREEMENT[verb.lower]


def _may_be_many(index: int, reading: Reading) -> bool:
    """Whether several things would do where one is: at the start, or in a list; not "on two couches"."""
    if reading.shape != "normal":
        return False
    if reading.tokens[index].lower == "one":
        return True
    if reading.starts_sentence(reading.tokens[index].start):
        return not any(reading.in_class(later, "one_each") for later in range(index, len(reading.tokens)))
    earlier = [token.lower for token in reading.tokens[:index]]  # "there is a dog and two cats" agrees with neither
    return not {"is", "was"} & {*earlier} and reading.in_class(reading.neighbour(index, -1), "counted_at")


def _noun_after(index: int, reading: Reading) -> tuple[Phrase, Sense] | None:
    """The singular noun that an article stands with, if nothing after it speaks of one thing."""
    here = reading.neighbour(index, 1)
    while here is not None and here in reading.at and not reading.is_noun(here):
        if not any(sense.group.kind in _ADJECTIVES for sense in reading.at[here].senses):
            return None
        here = reading.neighbour(reading.at[here].last - 1, 1)
    phrase = reading.at.get(-1 if here is None else here)
    if phrase is None or phrase.first != here:
        return None
    senses = [s for s in phrase.senses if s.form == "singular" and is_certain(s, phrase, reading)]
    after = reading.neighbour(phrase.last - 1, 1)
    if reading.in_class(phrase.last - 1, "worn"):
        return None
    if not senses or not (after is None or _may_follow(after, reading)):
        return None
    return (phrase, senses[0]) if _nothing_singular_later(phrase, reading) else None


def _may_follow(index: int, reading: Reading) -> bool:
    lower = reading.tokens[index].lower
    return (
        reading.in_class(index, "preposition")
        or lower in _AGREEMENT
        or lower == "and"
        or (lower.endswith("ing") and not reading.is_noun(index))
    )


def _nothing_singular_later(phrase: Phrase, reading: Reading) -> bool:
    after = reading.neighbour(phrase.last - 1, 1)
    first = phrase.last + (after is not None and reading.tokens[after].lower in _AGREEMENT)
    for index in range(first, len(reading.tokens)):
        lower = reading.tokens[index].lower
        if lower in _SINGULAR_LATER or lower.endswith(("'s", "\u2019s")):
            return False
        is_finite = lower.endswith("s") and not reading.is_noun(index) and not reading.in_class(index, "preposition")
        if is_finite and reading.is_noun(index - 1):
            return False
    return True


def _is_kept(index: int, reading: Reading) -> bool:
    return index in reading.at and reading.at[index].kept
