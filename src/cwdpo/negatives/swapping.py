"""Edits that exchange two things of an answer, or an attribute of one for that of the other."""

from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like
from cwdpo.negatives.lexicon import Sense
from cwdpo.negatives.numerals import counts_things, is_bound, is_free_figure, is_kept
from cwdpo.negatives.reading_text import NUMBER_WORDS, Phrase, Reading
from cwdpo.negatives.substitution import is_certain, same_sort, span_text

_ATTRIBUTES = ("colour", "size", "material", "age", "state")
_ARTICLES = ("a", "an", "the")
_PLACES = (("left", "right"), ("top", "bottom"), ("foreground", "background"), ("first", "last"), ("first", "second"))
_PLACED_BY = ("the", "far", "its", "facing")
_WHOLE_CLAUSE = 12


def swaps(reading: Reading) -> Iterator[Edit]:
    """Attributes that change places, then things that do, then counts, then places themselves."""
    yield from _attribute_swaps(reading)
    yield from _thing_swaps(reading)
    yield from _count_swaps(reading)
    yield from _place_swaps(reading)


def _attribute_swaps(reading: Reading) -> Iterator[Edit]:
    """ "a red car and a blue bus" becomes "a blue car and a red bus"."""
    found = [
        (phrase, sense, head)
        for phrase in reading.phrases
        for sense in phrase.senses
        if sense.group.kind in _ATTRIBUTES and is_certain(sense, phrase, reading)
        if (head := reading.head(phrase)) is not None and not same_sort(sense, phrase, reading)
    ]
    for place, (first, one, thing) in enumerate(found):
        for second, other, other_thing in found[place + 1 :]:
            if one.group is not other.group or reading.lexicon.are_synonyms(one.base, other.base):
                continue
            if thing.first == other_thing.first or reading.are_one_sort(thing, other_thing):
                continue
            yield Edit("order", (_part(first, second, reading), _part(second, first, reading)))


def _thing_swaps(reading: Reading) -> Iterator[Edit]:
    """ "a dog in front of a cat" becomes "a cat in front of a dog"."""
    for relation in reading.phrases:
        if (
            not relation.relation
            or sum(span_text(relation, reading) == span_text(o, reading) for o in reading.phrases) > 1
        ):
            continue
        before, after = _thing_before(relation, reading), _thing_after(relation, reading)
        if before is None or after is None:
            continue
        (first, one), (second, other) = before, after
        same = one.form == other.form and one.group.animate == other.group.animate
        if same and not reading.are_one_sort(first, second):
            parts = (_part(first, second, reading), _part(second, first, reading))
            if all(part.text == part.text.lower() for part in parts) or reading.shape != "normal":
                yield Edit("order", parts)


def _count_swaps(reading: Reading) -> Iterator[Edit]:
    """ "two dogs and three cats" becomes "three dogs and two cats"."""
    found = []
    for index, token in enumerate(reading.tokens):
        if is_kept(index, reading) or is_bound(index, reading):
            continue
        if token.lower in NUMBER_WORDS[1:] or (is_free_figure(index, reading) and counts_things(index, reading)):
            phrase = Phrase(index, index + 1, ())
            found.append((phrase, reading.head(phrase)))
    if len(found) == 2:  # with three, one of them may be the sum of the others
        (first, thing), (second, other) = found
        written = {reading.tokens[phrase.first].lower for phrase in (first, second)}
        if thing is None or other is None or len(written) < 2 or reading.are_one_sort(thing, other):
            return
        if reading.is_plural(thing.last - 1) and reading.is_plural(other.last - 1):
            yield Edit("order", (_part(first, second, reading), _part(second, first, reading)))


def _place_swaps(reading: Reading) -> Iterator[Edit]:
    """ "a dog on the left and a cat on the right" becomes "a dog on the right and a cat on the left"."""
    for one, other in _PLACES:
        places = [index for index, token in enumerate(reading.tokens) if token.lower in (one, other)]
        if len(places) != 2 or len({reading.tokens[index].lower for index in places}) != 2:
            continue
        if not all(_is_one_of(reading.neighbour(index, -1), _PLACED_BY, reading) for index in places):
            continue
        things = [_said_of(index, reading) for index in places]
        if things[0] is not None and things[1] is not None and not reading.are_one_sort(things[0], things[1]):
            first, second = (Phrase(index, index + 1, ()) for index in places)
            yield Edit("order", (_part(first, second, reading), _part(second, first, reading)))


def _said_of(index: int, reading: Reading) -> Phrase | None:
    """The thing that stands at a place: the nearest before it or, where the place begins a clause, after it."""
    for step in (-1, 1):
        nouns = [near for near in reading.around(index, step, _WHOLE_CLAUSE) if reading.is_noun(near)]
        if nouns:
            return reading.at[nouns[0]]
    return None


def _is_one_of(index: int | None, words: tuple[str, ...], reading: Reading) -> bool:
    return index is not None and reading.tokens[index].lower in words


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
