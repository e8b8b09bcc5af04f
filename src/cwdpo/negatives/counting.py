"""Edits of counts: "two dogs", "a dog", "3 dogs"."""

from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like, plural_of
from cwdpo.negatives.lexicon import Sense
from cwdpo.negatives.numerals import NOT_COUNTS, counts_things, is_bound, is_free_figure, is_kept
from cwdpo.negatives.reading_text import NUMBER_WORDS, Phrase, Reading
from cwdpo.negatives.substitution import is_certain, same_sort, span_text

_AGREEMENT = {"is": "are", "was": "were", "has": "have"}
_SINGULAR_LATER = frozenset(
    {"is", "was", "has", "does", "it", "its", "itself", "he", "his", "him", "she", "her", "himself", "herself", "that"}
    | {"who", "which", "one", "other", "another", "each"}
)
_ADJECTIVES = ("colour", "size", "material", "age", "state")
_TELLS_TOTAL = frozenset({"both", "other", "others", "either", "respectively", "pair"})


def counts(reading: Reading) -> Iterator[Edit]:
    """Counts in words and digits; where there are none, one thing becomes two or three."""
    exact = [*_number_words(reading), *_digits(reading), *_singles(reading, ("one", "1"))]
    yield from exact or _singles(reading, ("a", "an"))


def _number_words(reading: Reading) -> Iterator[Edit]:
    for index, token in enumerate(reading.tokens):
        if token.lower not in NUMBER_WORDS[1:] or is_kept(index, reading) or is_bound(index, reading):
            continue
        after = reading.neighbour(index, 1)
        if after is not None and reading.tokens[after].lower in (*NOT_COUNTS, "o'clock", "o\u2019clock", "and", "-"):
            continue
        number = NUMBER_WORDS.index(token.lower) + 1
        yield from _changed_counts(index, [other for other in _near(number) if other <= len(NUMBER_WORDS)], reading)


def _near(number: int) -> list[int]:
    """Counts next to a count, never one: its noun would have to change."""
    return [other for other in (number - 2, number - 1, number + 1, number + 2) if other >= 2]


def _digits(reading: Reading) -> Iterator[Edit]:
    for index, token in enumerate(reading.tokens):
        if is_free_figure(index, reading) and counts_things(index, reading):
            yield from _changed_counts(index, _near(int(token.text)), reading)


def _changed_counts(index: int, targets: list[int], reading: Reading) -> Iterator[Edit]:
    """A count with everything else in the answer that says the same count of the same things."""
    thing = _counted(index, reading)
    if reading.words & _TELLS_TOTAL and "each" not in reading.words:
        return
    places = [index]
    for other in range(len(reading.tokens)):
        if other == index or not reading.is_number(other) or is_kept(other, reading):
            continue
        others = _counted(other, reading)
        if others is None:
            return  # "three dogs, two of them brown": who knows what else would have to change
        if thing is None or reading.are_one_sort(thing, others):
            if _value(other, reading) != _value(index, reading):
                return
            places.append(other)
    if min(places) != index:  # the first one speaks for all
        return
    for target in targets:
        parts = [_count_part(place, target, reading) for place in sorted(places)]
        yield Edit("count", tuple(parts))


def _counted(index: int, reading: Reading) -> Phrase | None:
    """The noun that a number stands with, as far as the lexicon knows it."""
    return reading.head(Phrase(index, index + 1, ()))


def _value(index: int, reading: Reading) -> str:
    lower = reading.tokens[index].lower
    return str(NUMBER_WORDS.index(lower) + 1) if lower in NUMBER_WORDS else lower


def _count_part(index: int, target: int, reading: Reading) -> Part:
    token = reading.tokens[index]
    word = str(target) if token.lower[0].isdigit() else cased_like(token.text, _word(target))
    return Part(token.start, token.end, word)


def _word(number: int) -> str:
    return NUMBER_WORDS[number - 1] if number <= len(NUMBER_WORDS) else str(number)


def _singles(reading: Reading, articles: tuple[str, ...]) -> Iterator[Edit]:
    """ "a dog" becomes "two dogs", where no later word needs the one."""
    for index, token in enumerate(reading.tokens):
        if token.lower not in articles or is_kept(index, reading) or not _may_be_many(index, reading):
            continue
        found = _noun_after(index, reading)
        if found is None:
            continue
        phrase, sense = found
        start, end = reading.tokens[phrase.first].start, reading.tokens[phrase.last - 1].end
        if span_text(phrase, reading) != span_text(phrase, reading).lower():
            continue
        if same_sort(sense, phrase, reading):  # "a dog on the grass; the dog looks happy" would contradict itself
            continue
        noun = plural_of(sense.base, reading.lexicon.plurals)
        for number in ("2", "3") if token.lower == "1" else ("two", "three"):
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
    if reading.tokens[index].lower in ("one", "1"):
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
    if not senses or not (after is None or _may_follow(after, reading)) or _shares_one_object(after, reading):
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


def _shares_one_object(after: int | None, reading: Reading) -> bool:
    """Whether one thing would have to do for several: "three police officers riding a horse"."""
    if after is not None and reading.tokens[after].lower in _AGREEMENT:
        after = reading.neighbour(after, 1)
    if after is None or not reading.tokens[after].lower.endswith("ing") or reading.is_noun(after):
        return False
    article = reading.neighbour(after, 1)
    return article is not None and reading.tokens[article].lower in ("a", "an", "one")


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
