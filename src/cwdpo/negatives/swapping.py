"""Edits that exchange two things of an answer, or an attribute of one for that of the other."""

from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like
from cwdpo.negatives.lexicon import Sense
from cwdpo.negatives.reading_text import Phrase, Reading
from cwdpo.negatives.substitution import is_certain, span_text

_ATTRIBUTES = ("colour", "size", "material", "age", "state")
_ARTICLES = ("a", "an", "the")
_MOST_WORDS_TO_NOUN = 3


def swaps(reading: Reading) -> Iterator[Edit]:
    """Attributes that change places, then things that do."""
    yield from _attribute_swaps(reading)
    yield from _thing_swaps(reading)


def _attribute_swaps(reading: Reading) -> Iterator[Edit]:
    """ "a red car and a blue bus" becomes "a blue car and a red bus"."""
    found = [
        (phrase, sense, head)
        for phrase in reading.phrases
        for sense in phrase.senses
        if sense.group.kind in _ATTRIBUTES and is_certain(sense, phrase, reading)
        if (head := _head(phrase, reading)) is not None
    ]
    for place, (first, one, thing) in enumerate(found):
        for second, other, other_thing in found[place + 1 :]:
            if one.group is not other.group or reading.lexicon.are_synonyms(one.base, other.base):
                continue
            if thing.first == other_thing.first or _are_one_thing(thing, other_thing, reading):
                continue
            yield Edit("order", (_part(first, second, reading), _part(second, first, reading)))


def _head(phrase: Phrase, reading: Reading) -> Phrase | None:
    """The thing that an attribute before it belongs to."""
    for index in reading.around(phrase.last - 1, 1, _MOST_WORDS_TO_NOUN):
        if not reading.is_content(index):
            return None
        if reading.is_noun(index):
            after = reading.neighbour(reading.at[index].last - 1, 1)
            return None if after is not None and reading.is_noun(after) else reading.at[index]
    return None


def _are_one_thing(one: Phrase, other: Phrase, reading: Reading) -> bool:
    """Whether two nouns could name the same sort of thing; then "red car, blue car" says the same swapped."""
    words = [[sense.base for sense in phrase.senses] for phrase in (one, other)]
    return any(reading.lexicon.are_synonyms(a, b) for a in words[0] for b in words[1])


def _thing_swaps(reading: Reading) -> Iterator[Edit]:
    """ "a dog in front of a cat" becomes "a cat in front of a dog"."""
    for relation in reading.phrases:
        if not relation.relation:
            continue
        before, after = _thing_before(relation, reading), _thing_after(relation, reading)
        if before is None or after is None:
            continue
        (first, one), (second, other) = before, after
        same = one.form == other.form and one.group.animate == other.group.animate
        if same and not _are_one_thing(first, second, reading):
            parts = (_part(first, second, reading), _part(second, first, reading))
            if all(part.text == part.text.lower() for part in parts) or reading.shape != "normal":
                yield Edit("order", parts)


def _thing_before(relation: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    index = reading.neighbour(relation.first, -1)
    if index is not None and reading.tokens[index].lower.endswith("ing") and not reading.is_noun(index):
        index = reading.neighbour(index, -1)
    if index is None or not reading.is_noun(index):
        return None
    found = _simple_thing(reading.at[index], reading)
    article = reading.neighbour(reading.at[index].first, -1)
    before = None if article is None else reading.neighbour(article, -1)
    # "sitting on the lawn in front of a house": the lawn is not what stands in front
    return None if before is not None and reading.is_content(before) is False else found


def _thing_after(relation: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    article = reading.neighbour(relation.last - 1, 1)
    index = None if article is None else reading.neighbour(article, 1)
    if index is None or not reading.is_noun(index):
        return None
    after = reading.neighbour(reading.at[index].last - 1, 1)
    if after is not None and reading.is_content(after) and not reading.tokens[after].lower.endswith("ing"):
        return None
    return _simple_thing(reading.at[index], reading)


def _simple_thing(phrase: Phrase, reading: Reading) -> tuple[Phrase, Sense] | None:
    """A noun directly after its article, without attributes that would stay behind."""
    article = reading.neighbour(phrase.first, -1)
    if article is None or reading.tokens[article].lower not in _ARTICLES:
        return None
    senses = [sense for sense in phrase.senses if sense.is_noun and is_certain(sense, phrase, reading)]
    return (phrase, senses[0]) if senses else None


def _part(place: Phrase, source: Phrase, reading: Reading) -> Part:
    """One phrase in the place of another, in the capitals of that place."""
    start, end = reading.tokens[place.first].start, reading.tokens[place.last - 1].end
    moved, old = span_text(source, reading), span_text(place, reading)
    if reading.shape != "upper" and moved != moved.lower() and old == old.lower():
        moved = moved[:1].lower() + moved[1:]
    return Part(start, end, moved if old == old.lower() else cased_like(old, moved))
