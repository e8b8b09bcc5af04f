"""Numbers in an answer: which of them may be changed, and edits of those that count nothing (10:30, $4.50, 10 km)."""

import re
from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like
from cwdpo.negatives.reading_text import NUMBER_WORDS, Reading

NOT_COUNTS = frozenset({"hundred", "thousand", "million", "dozen", "thirds", "percent", "half", "by", "or", "to"})
_NOT_BEFORE = frozenset(
    {"or", "to", "between", "number", "no", "than", "point", "hundred", "twenty", "thirty", "times", "past"}
)
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")
_MOST_TARGETS = 4
_SIGNS_BEFORE, _SIGNS_AFTER = ("$", "\u20ac", "\u00a3", "#"), ("%", "\u00b0")


def numbers(reading: Reading) -> Iterator[Edit]:
    """Numbers that count nothing: times, prices, labels, hours."""
    for index, token in enumerate(reading.tokens):
        after = reading.neighbour(index, 1)
        if not is_free_figure(index, reading) or counts_things(index, reading):
            continue
        if reading.text.count(token.text) == 1:
            for target in _other_numbers(token.text):
                if "1" not in (target, token.text) or not _is_written_out(after, reading):
                    yield Edit("number", (Part(token.start, token.end, target),))
    for index, token in enumerate(reading.tokens):
        after = reading.neighbour(index, 1)
        hour, dash, rest = token.lower.partition("-")
        is_hour = after is not None and reading.tokens[after].lower in ("o'clock", "o\u2019clock")
        is_hour = is_hour or (index > 0 and reading.tokens[index - 1].lower == "past")
        if hour in NUMBER_WORDS and (is_hour or (dash and rest == "thirty")):
            for other in NUMBER_WORDS:
                if other != hour:
                    yield Edit("number", (Part(token.start, token.end, cased_like(token.text, other + dash + rest)),))


def is_free_figure(index: int, reading: Reading) -> bool:
    """Whether a token is a number in digits that may be changed alone."""
    token = reading.tokens[index]
    if not token.lower[0].isdigit() or _is_joined(token.start, token.end, reading.text):
        return False
    return not is_kept(index, reading) and not is_bound(index, reading)


def counts_things(index: int, reading: Reading) -> bool:
    """Whether digits count things: a number above one before a plural that is no unit."""
    token, text, after = reading.tokens[index], reading.text, reading.neighbour(index, 1)
    plain = token.text.isdecimal() and token.text.isascii() and not token.text.startswith("0")
    signed = text[token.start - 1 : token.start] in _SIGNS_BEFORE or text[token.end : token.end + 1] in _SIGNS_AFTER
    if not plain or signed or not 2 <= int(token.text) < 1000 or after is None or _is_unit(after, reading):
        return False
    return reading.is_plural(after) or (reading.tokens[after].lower.endswith("s") and not reading.is_noun(after))


def is_bound(index: int, reading: Reading) -> bool:
    """Whether a number is part of a range or of a longer number."""
    before, after = reading.neighbour(index, -1), reading.neighbour(index, 1)
    lower = "" if before is None else reading.tokens[before].lower
    if lower == "and":
        further = reading.neighbour(index - 1, -1)
        linked = further is not None and (reading.is_number(further) or reading.tokens[further].lower in NOT_COUNTS)
        return linked or "between" in (reading.tokens[near].lower for near in reading.around(index, -1))
    return lower in _NOT_BEFORE or (after is not None and reading.tokens[after].lower in ("to", "or"))


def is_kept(index: int, reading: Reading) -> bool:
    """Whether a token belongs to a phrase that stays as it is."""
    return index in reading.at and reading.at[index].kept


def _is_written_out(after: int | None, reading: Reading) -> bool:
    """Whether a word follows whose ending says how many there are: "1 foot", but not "1 km"."""
    if after is None:
        return False
    word = reading.tokens[after].text
    return word[0].isalpha() and reading.is_content(after) and not (_is_unit(after, reading) and len(word) <= 2)


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
