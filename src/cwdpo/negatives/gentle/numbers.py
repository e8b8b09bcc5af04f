"""Edits of counts ("two dogs", "a dog", "3 dogs"), of other numbers, and of what changes places with something else."""

import math
import re
from collections.abc import Iterator

from cwdpo.negatives.gentle.edits import NUMBER_WORDS, Edit, Part, Phrase, Reading, Token
from cwdpo.negatives.gentle.lexicon import ATTRIBUTES, Sense, cased_like, plural_of
from cwdpo.negatives.gentle.words import is_certain, same_sort

_NOT_COUNTS = frozenset({"hundred", "thousand", "million", "dozen", "thirds", "percent", "half", "by", "or", "to"})
_NOT_BEFORE = frozenset(
    {"or", "to", "between", "number", "no", "than", "point", "hundred", "twenty", "thirty", "times", "past"}
)
_OCLOCK = ("o'clock", "o\u2019clock")


def counts(reading: Reading) -> Iterator[Edit]:
    """Counts in words and digits; where there are none, one thing becomes two or three."""
    exact = [*_stated(reading), *_singles(reading, ("one", "1"))]
    yield from exact or _singles(reading, ("a", "an"))


def numbers(reading: Reading) -> Iterator[Edit]:
    """Numbers that count nothing: times, prices, labels, hours."""
    for index, token in enumerate(reading.tokens):
        is_free = _is_free_figure(index, reading) and not _counts_things(index, reading)
        for target in _other_numbers(token.text) if is_free and reading.text.count(token.text) == 1 else ():
            if "1" not in (target, token.text) or not _is_written_out(reading.neighbour(index, 1), reading):
                yield Edit("number", (Part(token.start, token.end, target),))
    for index, token in enumerate(reading.tokens):
        hour, dash, rest = token.lower.partition("-")
        is_hour = reading.lower(reading.neighbour(index, 1)) in _OCLOCK or rest == "thirty"
        is_hour = is_hour or (index > 0 and reading.lower(index - 1) == "past")
        for other in NUMBER_WORDS if is_hour and hour in NUMBER_WORDS else ():
            if other != hour:
                yield Edit("number", (Part(token.start, token.end, cased_like(token.text, other + dash + rest)),))


def swaps(reading: Reading) -> Iterator[Edit]:
    """Attributes that change places, then things that do, then counts, then places themselves."""
    pairs = (_attribute_pairs(reading), _thing_pairs(reading), _count_pairs(reading), _place_pairs(reading))
    for first, second in (pair for of_kind in pairs for pair in of_kind):
        yield Edit("order", (_moved(second, first, reading), _moved(first, second, reading)))


def _stated(reading: Reading) -> Iterator[Edit]:
    """Counts from two on: those in words, then those in digits."""
    for index, token in enumerate(reading.tokens):
        if token.lower not in NUMBER_WORDS[1:] or _is_kept(index, reading) or _is_bound(index, reading):
            continue
        if reading.lower(reading.neighbour(index, 1)) in (*_NOT_COUNTS, *_OCLOCK, "and", "-"):
            continue
        yield from _changed_counts(index, NUMBER_WORDS.index(token.lower) + 1, len(NUMBER_WORDS), reading)
    for index, token in enumerate(reading.tokens):
        if _is_free_figure(index, reading) and _counts_things(index, reading):
            yield from _changed_counts(index, int(token.text), math.inf, reading)


_SAYS_TOTAL = frozenset({"both", "other", "others", "either", "respectively", "pair"})


def _changed_counts(index: int, count: int, most: float, reading: Reading) -> Iterator[Edit]:
    """A count becomes another near it, with all else in the answer that says the same count of the same things."""
    thing = reading.head(Phrase(index, index + 1, ()))
    if reading.words & _SAYS_TOTAL and "each" not in reading.words:
        return
    places = [index]
    for other in range(len(reading.tokens)):
        if other == index or not reading.is_number(other) or _is_kept(other, reading):
            continue
        others = reading.head(Phrase(other, other + 1, ()))
        if others is None:
            return  # "three dogs, two of them brown": who knows what else would have to change
        if thing is None or reading.are_one_sort(thing, others):
            if _value(other, reading) != _value(index, reading):
                return
            places.append(other)
    if min(places) != index:  # the first one speaks for all
        return
    for target in (count - 2, count - 1, count + 1, count + 2):
        if 2 <= target <= most:  # never one: its noun would have to change
            yield Edit("count", tuple(_count_part(reading.tokens[place], target) for place in sorted(places)))


def _value(index: int, reading: Reading) -> str:
    lower = reading.lower(index)
    return str(NUMBER_WORDS.index(lower) + 1) if lower in NUMBER_WORDS else lower


def _count_part(token: Token, target: int) -> Part:
    in_digits = token.lower[0].isdigit() or target > len(NUMBER_WORDS)
    text = str(target) if in_digits else cased_like(token.text, NUMBER_WORDS[target - 1])
    return Part(token.start, token.end, text)


_PLURAL_VERBS = {"is": "are", "was": "were", "has": "have"}
_SINGULAR_LATER = frozenset(
    {"is", "was", "has", "does", "it", "its", "itself", "he", "his", "him", "she", "her", "himself", "herself", "that"}
    | {"who", "which", "one", "other", "another", "each"}
)


def _singles(reading: Reading, articles: tuple[str, ...]) -> Iterator[Edit]:
    """ "a dog" becomes "two dogs", where no later word needs the one."""
    for index, token in enumerate(reading.tokens):
        if token.lower not in articles or _is_kept(index, reading) or not _may_be_many(index, reading):
            continue
        found = _noun_after(index, reading)
        if found is None:
            continue
        phrase, sense = found
        # "a dog on the grass; the dog looks happy" would contradict itself
        if reading.text_of(phrase) != reading.text_of(phrase).lower() or same_sort(sense, phrase, reading):
            continue
        start, end = reading.span(phrase)
        changed = reading.text[token.end : start] + plural_of(sense.base, reading.lexicon.plurals)
        after = reading.neighbour(phrase.last - 1, 1)
        if after is not None and reading.lower(after) in _PLURAL_VERBS:
            verb = reading.tokens[after]
            changed, end = changed + reading.text[end : verb.start] + _PLURAL_VERBS[verb.lower], verb.end
        for number in ("2", "3") if token.lower == "1" else ("two", "three"):
            yield Edit("count", (Part(token.start, end, cased_like(token.text, number) + changed),))


def _may_be_many(index: int, reading: Reading) -> bool:
    """Whether several things would do where one is: at the start, or in a list; not "on two couches"."""
    if reading.shape != "normal":
        return False
    if reading.lower(index) in ("one", "1"):
        return True
    if reading.starts_sentence(reading.tokens[index].start):
        return not any(reading.in_class(later, "one_each") for later in range(index, len(reading.tokens)))
    earlier = [token.lower for token in reading.tokens[:index]]  # "there is a dog and two cats" agrees with neither
    return not {"is", "was"} & {*earlier} and reading.in_class(reading.neighbour(index, -1), "counted_at")


def _noun_after(index: int, reading: Reading) -> tuple[Phrase, Sense] | None:
    """The singular noun that an article stands with, if nothing after it speaks of one thing."""
    here = reading.neighbour(index, 1)
    while here is not None and here in reading.at and not reading.is_noun(here):
        if not any(sense.group.kind in ATTRIBUTES for sense in reading.senses(here)):
            return None
        here = reading.neighbour(reading.at[here].last - 1, 1)
    phrase = None if here is None else reading.at.get(here)
    if phrase is None or phrase.first != here:
        return None
    senses = [s for s in phrase.senses if s.form == "singular" and is_certain(s, phrase, reading)]
    after = reading.neighbour(phrase.last - 1, 1)
    may_follow = reading.lower(after) in ("", "and", *_PLURAL_VERBS) or reading.in_class(after, "preposition")
    may_follow = may_follow or (reading.lower(after).endswith("ing") and not reading.is_noun(after))
    if not senses or reading.in_class(phrase.last - 1, "worn") or not may_follow or _shares_one_object(after, reading):
        return None
    return (phrase, senses[0]) if _nothing_singular_later(phrase, reading) else None


def _shares_one_object(after: int | None, reading: Reading) -> bool:
    """Whether one thing would have to do for several: "three police officers riding a horse"."""
    if after is not None and reading.lower(after) in _PLURAL_VERBS:
        after = reading.neighbour(after, 1)
    if after is None or not reading.lower(after).endswith("ing") or reading.is_noun(after):
        return False
    return reading.lower(reading.neighbour(after, 1)) in ("a", "an", "one")


def _nothing_singular_later(phrase: Phrase, reading: Reading) -> bool:
    first = phrase.last + (reading.lower(reading.neighbour(phrase.last - 1, 1)) in _PLURAL_VERBS)
    for index in range(first, len(reading.tokens)):
        lower = reading.lower(index)
        if lower in _SINGULAR_LATER or lower.endswith(("'s", "\u2019s")):
            return False
        is_finite = lower.endswith("s") and not reading.is_noun(index) and not reading.in_class(index, "preposition")
        if is_finite and reading.is_noun(index - 1):
            return False
    return True


def _is_free_figure(index: int, reading: Reading) -> bool:
    """Whether a token is a number in digits that may be changed alone."""
    token = reading.tokens[index]
    if not token.lower[0].isdigit() or _is_kept(index, reading) or _is_bound(index, reading):
        return False
    before, after = reading.text[max(token.start - 1, 0) : token.start], reading.text[token.end : token.end + 1]
    # part of something longer: a date, a name, a web address
    return not re.match(r"[\w/\-:.,@&]", before) and not re.match(r"[\w/\-@&]", after)


def _counts_things(index: int, reading: Reading) -> bool:
    """Whether digits count things: a number above one before a plural that is not a unit."""
    token, text, after = reading.tokens[index], reading.text, reading.neighbour(index, 1)
    plain = token.text.isdecimal() and token.text.isascii() and not token.text.startswith("0")
    signed = text[token.start - 1 : token.start] in ("$", "\u20ac", "\u00a3", "#")
    signed = signed or text[token.end : token.end + 1] in ("%", "\u00b0")
    if not plain or signed or not 2 <= int(token.text) < 1000 or after is None or _is_unit(after, reading):
        return False
    return reading.is_plural(after) or (reading.lower(after).endswith("s") and not reading.is_noun(after))


def _is_bound(index: int, reading: Reading) -> bool:
    """Whether a number is part of a range or of a longer number."""
    before = reading.lower(reading.neighbour(index, -1))
    if before == "and":
        further = reading.neighbour(index - 1, -1)
        linked = further is not None and (reading.is_number(further) or reading.lower(further) in _NOT_COUNTS)
        return linked or "between" in (reading.lower(near) for near in reading.around(index, -1))
    return before in _NOT_BEFORE or reading.lower(reading.neighbour(index, 1)) in ("to", "or")


def _is_kept(index: int, reading: Reading) -> bool:
    """Whether a token belongs to a phrase that stays as it is."""
    return index in reading.at and reading.at[index].kept


def _is_written_out(after: int | None, reading: Reading) -> bool:
    """Whether a word follows whose ending says how many there are: "1 foot", but not "1 km"."""
    return (
        after is not None
        and reading.is_content(after)
        and not (_is_unit(after, reading) and len(reading.lower(after)) <= 2)
    )


def _is_unit(index: int, reading: Reading) -> bool:
    return any(sense.group.kind == "number" for sense in reading.senses(index))


_TIME = re.compile(r"(\d{1,2}):([0-5]\d)")


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
    return [f"{number[:place]}{d}{number[place + 1 :]}" for d in others]


_PLACES = (("left", "right"), ("top", "bottom"), ("foreground", "background"), ("first", "last"), ("first", "second"))
_PLACED_BY = ("the", "far", "its", "facing")
_WHOLE_CLAUSE = 12


def _attribute_pairs(reading: Reading) -> Iterator[tuple[Phrase, Phrase]]:
    """ "a red car and a blue bus" becomes "a blue car and a red bus"."""
    found = [
        (phrase, sense, head)
        for phrase in reading.phrases
        for sense in phrase.senses
        if sense.group.kind in ATTRIBUTES and is_certain(sense, phrase, reading)
        if (head := reading.head(phrase)) is not None and not same_sort(sense, phrase, reading)
    ]
    for place, (first, one, thing) in enumerate(found):
        for second, other, other_thing in found[place + 1 :]:
            if one.group is not other.group or reading.lexicon.are_synonyms(one.base, other.base):
                continue
            if thing.first != other_thing.first and not reading.are_one_sort(thing, other_thing):
                yield first, second


def _thing_pairs(reading: Reading) -> Iterator[tuple[Phrase, Phrase]]:
    """ "a dog in front of a cat" becomes "a cat in front of a dog"."""
    written = [reading.text_of(phrase) for phrase in reading.phrases]
    for relation in reading.phrases:
        if not relation.relation or written.count(reading.text_of(relation)) > 1:
            continue
        before, after = _thing_before(relation, reading), _thing_after(relation, reading)
        if before is None or after is None:
            continue
        (first, one), (second, other) = before, after
        same = one.form == other.form and one.group.animate == other.group.animate
        if same and not reading.are_one_sort(first, second):
            moved = _moved(second, first, reading).text + _moved(first, second, reading).text
            if moved == moved.lower() or reading.shape != "normal":
                yield first, second


def _count_pairs(reading: Reading) -> Iterator[tuple[Phrase, Phrase]]:
    """ "two dogs and three cats" becomes "three dogs and two cats"."""
    found = []
    for index, token in enumerate(reading.tokens):
        if _is_kept(index, reading) or _is_bound(index, reading):
            continue
        if token.lower in NUMBER_WORDS[1:] or (_is_free_figure(index, reading) and _counts_things(index, reading)):
            found.append(Phrase(index, index + 1, ()))
    if len(found) != 2:  # with three, one of them may be the sum of the others
        return
    first, second = found
    thing, other = reading.head(first), reading.head(second)
    if thing is None or other is None or reading.are_one_sort(thing, other):
        return
    differ = reading.lower(first.first) != reading.lower(second.first)
    if differ and reading.is_plural(thing.last - 1) and reading.is_plural(other.last - 1):
        yield first, second


def _place_pairs(reading: Reading) -> Iterator[tuple[Phrase, Phrase]]:
    """ "a dog on the left and a cat on the right" becomes "a dog on the right and a cat on the left"."""
    for names in _PLACES:
        places = [index for index, token in enumerate(reading.tokens) if token.lower in names]
        if len(places) != 2 or len({reading.lower(index) for index in places}) != 2:
            continue
        if not all(reading.lower(reading.neighbour(index, -1)) in _PLACED_BY for index in places):
            continue
        one, other = (_said_of(index, reading) for index in places)
        if one is not None and other is not None and not reading.are_one_sort(one, other):
            yield Phrase(places[0], places[0] + 1, ()), Phrase(places[1], places[1] + 1, ())


def _said_of(index: int, reading: Reading) -> Phrase | None:
    """The thing that stands at a place: the nearest before it or, where the place begins a clause, after it."""
    near = [*reading.around(index, -1, _WHOLE_CLAUSE), *reading.around(index, 1, _WHOLE_CLAUSE)]
    return next((reading.at[other] for other in near if reading.is_noun(other)), None)


def _thing_before(relation: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    index = reading.neighbour(relation.first, -1)
    if index is not None and reading.lower(index).endswith("ing") and not reading.is_noun(index):
        index = reading.neighbour(index, -1)
    if index is None or not reading.is_noun(index):
        return None
    article = reading.neighbour(reading.at[index].first, -1)
    before = None if article is None else reading.neighbour(article, -1)
    if before is not None and not reading.is_content(before):
        return None  # "sitting on the lawn in front of a house": the lawn is not what stands in front
    return _simple_thing(reading.at[index], reading)


def _thing_after(relation: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    article = reading.neighbour(relation.last - 1, 1)
    index = None if article is None else reading.neighbour(article, 1)
    if index is None or not reading.is_noun(index):
        return None
    after = reading.neighbour(reading.at[index].last - 1, 1)
    if after is not None and reading.is_content(after) and not reading.lower(after).endswith("ing"):
        return None
    return _simple_thing(reading.at[index], reading)


def _simple_thing(phrase: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    """A noun directly after its article, without attributes that would stay behind."""
    if reading.lower(reading.neighbour(phrase.first, -1)) not in ("a", "an", "the"):
        return None
    senses = [sense for sense in phrase.senses if sense.is_noun and is_certain(sense, phrase, reading)]
    return (phrase, senses[0]) if senses else None


def _moved(phrase: Phrase, to: Phrase, reading: Reading) -> Part:
    """A phrase in the place of another, in the capitals of that place."""
    moved, old = reading.text_of(phrase), reading.text_of(to)
    if reading.shape != "upper" and moved != moved.lower() and old == old.lower():
        moved = moved[:1].lower() + moved[1:]
    return Part(*reading.span(to), moved if old == old.lower() else cased_like(old, moved))
