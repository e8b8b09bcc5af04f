"""Edits that put one word of the lexicon in another's place."""

import itertools
import re
from collections.abc import Iterator

from cwdpo.negatives.gentle.edits import Edit, Part, Phrase, Reading
from cwdpo.negatives.gentle.lexicon import Sense, cased_like

_SINGULAR = frozenset({"a", "an", "one", "this", "that", "each", "every", "another"})
_PLURAL = frozenset({"these", "those", "several", "many", "few", "some", "of"})
_WHOLE_TEXT = ("object", "action", "material", "state", "relation")
"""Kinds whose target may stand nowhere else in the answer."""

_NEARBY = 3


def substitutions(reading: Reading) -> Iterator[Edit]:
    """Every exchange that the lexicon allows in a text, in the order of the text."""
    for phrase in reading.phrases:
        for sense in phrase.senses:
            if is_certain(sense, phrase, reading):
                yield from _exchanges(sense, phrase, reading)


def is_certain(sense: Sense, phrase: Phrase, reading: Reading) -> bool:
    """Whether a phrase stands where this sense of it is the right one."""
    guard = sense.group.guards.get(sense.base)
    if not reading.allows(sense.group.conditions, phrase) or (guard and not reading.allows(guard.conditions, phrase)):
        return False
    if sense.group.form == "noun" and len({other.form for other in phrase.senses if other.group is sense.group}) > 1:
        return _number_fits(sense.form, phrase, reading)  # sheep, deer: one form for one and for many
    return sense.group.form != "verb" or _is_verb(sense.form, phrase, reading)


def same_sort(sense: Sense, phrase: Phrase, reading: Reading) -> list[Phrase]:
    """The other places where an answer has a word, one of its forms or a synonym."""

    def means_it(one: Sense) -> bool:
        return one.group.kind == sense.group.kind and reading.lexicon.are_synonyms(one.base, sense.base)

    return [other for other in reading.phrases if other is not phrase and any(map(means_it, other.senses))]


def _exchanges(sense: Sense, phrase: Phrase, reading: Reading) -> Iterator[Edit]:
    together = _mentions(sense, phrase, reading)
    if together is None or together[0][0] is not phrase:  # the first mention speaks for all
        return
    things = [place for place in reading.phrases if reading.is_noun(place.first)]
    named_twice = any(itertools.starmap(reading.are_one_sort, itertools.combinations(things, 2)))
    for target in sense.targets:
        named = any(_stands_already(target, one, place, reading) for place, one in together)
        if named or _contradicts_pronoun(target[0], reading):
            continue
        if sense.group.kind == "relation" and target[0] in reading.words and named_twice:
            continue  # "the dog is left of the cat, and the cat is right of the dog" says one thing two ways
        texts = [(place, _written(target[0], one, place, reading)) for place, one in together]
        parts = tuple(Part(*reading.span(place), text) for place, text in texts if text is not None)
        if len(parts) == len(together):
            yield Edit(sense.group.kind, parts)


def _written(base: str, sense: Sense, phrase: Phrase, reading: Reading) -> str | None:
    """A word in the form and the capitals of the phrase it replaces; None where the capitals make it a name."""
    text, form, loud = reading.text_of(phrase), reading.lexicon.write(base, sense), reading.shape == "upper"
    if sense.base != sense.base.lower():
        return form.upper() if loud else form
    if text == text.lower():
        return form
    if loud:
        return form.upper()
    if text.isupper() and len(text) <= 3:  # TV in a sentence of small letters
        return form.upper() if sense.group.kind == "number" else form
    starts = reading.starts_sentence(reading.span(phrase)[0])
    if text[:1].isupper() and ((starts and text[1:] == text[1:].lower()) or reading.shape == "title"):
        return cased_like(text, form)
    return None


def _mentions(sense: Sense, phrase: Phrase, reading: Reading) -> list[tuple[Phrase, Sense]] | None:
    """Every place that must change with a phrase lest the answer contradicts itself; None where that cannot be done."""
    found = [(phrase, sense)]
    forms = {form for _, form in reading.lexicon.forms(sense.base, sense.group.form)}
    owners = (re.sub("['\u2019]s?$", "", word) for word in reading.words if re.search("['\u2019]", word))
    if sense.is_noun and not forms.isdisjoint(owners):  # "the dog's bowl" would keep the dog
        return None
    for other in same_sort(sense, phrase, reading):
        if _are_introduced_apart(phrase, other, reading):
            continue  # a red car and a blue car: two things
        if not sense.is_noun:
            one_thing, other_thing = (_thing(place, sense, reading) for place in (phrase, other))
            if one_thing is None or other_thing is None:
                return None
            if not reading.are_one_sort(one_thing, other_thing):
                continue  # a red car and a red bus: two facts
        alike = (one for one in other.senses if one.group is sense.group and one.targets == sense.targets)
        usable = [one for one in alike if is_certain(one, other, reading)]
        if not usable:
            return None
        found.append((other, usable[0]))
    return sorted(found, key=lambda mention: mention[0].first)


def _are_introduced_apart(one: Phrase, other: Phrase, reading: Reading) -> bool:
    """Whether two mentions in one sentence have an "a" each, so that they speak of two things."""
    start, end = sorted(reading.span(phrase)[0] for phrase in (one, other))
    if re.search(r"[.!?;\n]", reading.text[start:end]):
        return False
    before = [reading.around(phrase.first, -1) for phrase in (one, other)]
    articles = [next((index for index in near if not reading.is_content(index)), None) for near in before]
    return all(reading.lower(article) in ("a", "an", "another") for article in articles)


def _thing(phrase: Phrase, sense: Sense, reading: Reading) -> Phrase | None:
    """What a word is said of, or with."""
    if sense.group.kind not in ("relation", "action"):
        return reading.head(phrase)
    after = (index for index in reading.around(phrase.last - 1, 1) if reading.is_noun(index))
    return next((reading.at[index] for index in after), None)


def _stands_already(target: tuple[str, ...], sense: Sense, phrase: Phrase, reading: Reading) -> bool:
    """Whether the answer names the target too: "a cat and a cat" would say less, not something else."""
    text, words = reading.text.lower(), reading.words
    if sense.group.kind not in _WHOLE_TEXT:
        near = [*reading.around(phrase.first, -1, _NEARBY), *reading.around(phrase.last - 1, 1, _NEARBY)]
        words = frozenset(reading.lower(index) for index in near)
        text = " ".join(words)
    forms = [form.lower() for word in target for _, form in reading.lexicon.forms(word, sense.group.form)]
    return any(form in text if " " in form else form in words for form in forms)


def _contradicts_pronoun(target: str, reading: Reading) -> bool:
    """Whether the target's sex is not that of the answer's pronouns."""
    male, female = (reading.lexicon.classes.get(name, frozenset()) for name in ("male", "female"))
    pronouns = reading.words & {"he", "his", "him", "himself", "she", "her", "hers", "herself"}
    return bool((target in male and pronouns & female) or (target in female and pronouns & male))


def _number_fits(form: str, phrase: Phrase, reading: Reading) -> bool:
    before = reading.neighbour(phrase.first, -1)
    lower = reading.lower(before)
    if form == "singular":
        return lower in _SINGULAR
    return lower in _PLURAL or (before is not None and reading.is_number(before) and lower not in ("one", "1"))


def _is_verb(form: str, phrase: Phrase, reading: Reading) -> bool:
    """Whether a word that could be a noun too is a verb here, by the word before it."""
    before = reading.neighbour(phrase.first, -1)
    subject = before is not None and reading.is_noun(before)
    plural = reading.in_class(before, "plural_subject")
    if form == "going":
        return not reading.in_class(before, "det")
    if form == "base":
        return plural or (subject and reading.is_plural(before))
    if form == "third":
        return reading.in_class(before, "third_person") or (subject and not reading.is_plural(before))
    return subject or plural or reading.in_class(before, "third_person")
