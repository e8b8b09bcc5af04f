"""Edits that put one word of the lexicon in another's place."""

from collections.abc import Iterator

from cwdpo.negatives.edits import Edit, Part
from cwdpo.negatives.inflection import cased_like
from cwdpo.negatives.lexicon import Sense
from cwdpo.negatives.reading_text import Phrase, Reading

_SINGULAR = frozenset({"a", "an", "one", "this", "that", "each", "every", "another"})
_PLURAL = frozenset({"these", "those", "several", "many", "few", "some", "of"})
_WHOLE_TEXT = ("object", "action", "material", "state")  # kinds whose target may stand nowhere else in the answer
_NEARBY = 3


def substitutions(reading: Reading) -> Iterator[Edit]:
    """Every exchange that the lexicon allows in a text, in the order of the text."""
    for phrase in reading.phrases:
        for sense in phrase.senses:
            if is_certain(sense, phrase, reading):
                yield from _exchanges(sense, phrase, reading)


def is_certain(sense: Sense, phrase: Phrase, reading: Reading) -> bool:
    """Whether a phrase stands where this reading of it is the right one."""
    conditions = (sense.group.conditions, sense.group.guards.get(sense.base, {}))
    if not all(reading.allows(each, phrase) for each in conditions):
        return False
    if sense.group.form == "noun" and len({other.form for other in phrase.senses if other.group is sense.group}) > 1:
        return _number_fits(sense.form, phrase, reading)  # sheep, deer: one form for one and for many
    return sense.group.form != "verb" or _is_verb(sense.form, phrase, reading)


def written(base: str, sense: Sense, phrase: Phrase, reading: Reading) -> str | None:
    """A word in the form and the capitals of the phrase it replaces; None where the capitals make it a name."""
    text, lexicon = span_text(phrase, reading), reading.lexicon
    form = lexicon.write(base, sense)
    if sense.base != sense.base.lower():
        return form.upper() if reading.shape == "upper" else form
    if text == text.lower():
        return form
    if reading.shape == "upper":
        return form.upper()
    if text.isupper() and len(text) <= 3:  # TV in a sentence of small letters
        return form.upper() if sense.group.kind == "number" else form
    first, rest = text[:1], text[1:]
    starts = reading.starts_sentence(reading.tokens[phrase.first].start)
    if first.isupper() and ((starts and rest == rest.lower()) or reading.shape == "title"):
        return cased_like(text, form)
    return None


def span_text(phrase: Phrase, reading: Reading) -> str:
    """The characters of a phrase."""
    return reading.text[reading.tokens[phrase.first].start : reading.tokens[phrase.last - 1].end]


def _exchanges(sense: Sense, phrase: Phrase, reading: Reading) -> Iterator[Edit]:
    start, end = reading.tokens[phrase.first].start, reading.tokens[phrase.last - 1].end
    for target in sense.targets:
        if _stands_already(target, sense, phrase, reading) or _contradicts_pronoun(target[0], reading):
            continue
        text = written(target[0], sense, phrase, reading)
        if text is not None:
            yield Edit(sense.group.kind, (Part(start, end, text),))


def _stands_already(target: tuple[str, ...], sense: Sense, phrase: Phrase, reading: Reading) -> bool:
    """Whether the answer names the target too: "a cat and a cat" would say less, not something else."""
    if sense.group.kind in _WHOLE_TEXT:
        text, words = reading.text.lower(), reading.words
    else:
        near = [*reading.around(phrase.first, -1, _NEARBY), *reading.around(phrase.last - 1, 1, _NEARBY)]
        words = frozenset(reading.tokens[index].lower for index in near)
        text = " ".join(words)
    forms = [form.lower() for word in target for _, form in reading.lexicon.forms(word, sense.group.form)]
    return any(form in text if " " in form else form in words for form in forms)


def _contradicts_pronoun(target: str, reading: Reading) -> bool:
    """Whether the target's sex is not that of the answer's pronouns."""
    classes = reading.lexicon.classes
    male, female = classes.get("male", frozenset()), classes.get("female", frozenset())
    pronouns = reading.words & {"he", "his", "him", "himself", "she", "her", "hers", "herself"}
    return bool((target in male and pronouns & female) or (target in female and pronouns & male))


def _number_fits(form: str, phrase: Phrase, reading: Reading) -> bool:
    before = reading.neighbour(phrase.first, -1)
    if before is None:
        return False
    lower = reading.tokens[before].lower
    several = lower in _PLURAL or (reading.is_number(before) and lower not in ("one", "1"))
    return lower in _SINGULAR if form == "singular" else several


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
