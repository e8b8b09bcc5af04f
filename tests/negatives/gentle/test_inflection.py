"""Word forms, against a list written by hand."""

import re

import pytest

from cwdpo.negatives import read_lexicon
from cwdpo.negatives.gentle.lexicon import cased_like, indefinite_article, plural_of, verb_forms


@pytest.mark.parametrize(
    ("word", "article"),
    [
        ("apple", "an"),
        ("dog", "a"),
        ("umbrella", "an"),
        ("uniform", "a"),
        ("unidentified", "an"),
        ("unlit", "an"),
        ("urban", "an"),
        ("user", "a"),
        ("usher", "an"),
        ("Uganda", "a"),
        ("Uruguay", "a"),
        ("urn", "an"),
        ("European", "a"),
        ("one-eyed", "a"),
        ("onion", "an"),
        ("honest", "an"),
        ("horse", "a"),
        ("8", "an"),
        ("80", "an"),
        ("11", "an"),
        ("18", "an"),
        ("110", "a"),
        ("1,800", "a"),
        ("11,000", "an"),
        ("SUV", "an"),
        ("TV", "a"),
        ("UFO", "a"),
    ],
)
def test_article(word: str, article: str) -> None:
    assert indefinite_article(word) == article


def test_plurals_of_the_lexicon() -> None:
    plurals = read_lexicon().plurals
    words = {"dog": "dogs", "bench": "benches", "box": "boxes", "cherry": "cherries", "toy train": "toy trains"}
    words |= {"knife": "knives", "policeman": "policemen", "sheep": "sheep", "donkey": "donkeys", "potato": "potatoes"}
    words |= {"mouse": "mice", "elf": "elves", "merman": "mermen", "merperson": "merpeople", "superhero": "superheroes"}
    assert {word: plural_of(word, plurals) for word in words} == words


def test_verbs_of_the_lexicon() -> None:
    verbs = read_lexicon().verbs
    assert verb_forms("lie", verbs) == ("lies", "lay", "lying")
    assert verb_forms("push", verbs) == ("pushes", "pushed", "pushing")
    assert verb_forms("ride", verbs) == ("rides", "rode", "riding")


def test_every_verb_that_doubles_its_last_letter_is_listed() -> None:
    """A verb such as "jog" needs an entry under ``verbs``: no rule here doubles the g."""
    lexicon = read_lexicon()
    verbs = [group for group in lexicon.groups.values() if group.form == "verb"]
    used = {word for group in verbs for member in (*group.members, *group.turns.values()) for word in member}
    used |= {word for group in verbs for word in group.turns}
    doubling = {word for word in used if re.fullmatch("[^aeiou]*[aeiou][bdgmnprt]", word)}
    assert {"run", "hug", "nap"} <= doubling
    assert doubling <= set(lexicon.verbs)


def test_capitals() -> None:
    assert cased_like("A", "two") == "Two"
    assert cased_like("dog", "cat") == "cat"
