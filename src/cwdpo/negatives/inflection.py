"""English word forms as far as exchanging words needs them: plurals, verb forms, a or an, capitals."""

import re
from collections.abc import Mapping, Sequence

_A_DESPITE_VOWEL = re.compile(r"eu|ew|one(?![a-z])|once|uk|ubi|uni(?![nmd])|us[aeu]|ut[aeio]|ur[aio]")
_AN_DESPITE_CONSONANT = re.compile(r"hour|honest|hono|heir")
_AN_NUMBER = re.compile(r"8|1[18](?!\d)|1[18](?=[,.]?\d{3}(?!\d))")
_VOWEL_LETTERS = frozenset("AEFHILMNORSX")


def plural_of(noun: str, irregular: Mapping[str, str]) -> str:
    """Plural of a noun or of a phrase that ends with its noun.

    Example:
        >>> plural_of("bus stop", {}), plural_of("cherry", {}), plural_of("police man", {"man": "men"})
        ('bus stops', 'cherries', 'police men')
    """
    if noun in irregular:
        return irregular[noun]
    head, space, last = noun.rpartition(" ")
    return head + space + (irregular[last] if last in irregular else _with_s(last))


def verb_forms(verb: str, irregular: Mapping[str, Sequence[str]]) -> tuple[str, str, str]:
    """Third person, past and -ing form; only the irregular table doubles consonants.

    Example:
        >>> verb_forms("carry", {}), verb_forms("smile", {}), verb_forms("sit", {"sit": ["sits", "sat", "sitting"]})
        (('carries', 'carried', 'carrying'), ('smiles', 'smiled', 'smiling'), ('sits', 'sat', 'sitting'))
    """
    if verb in irregular:
        third, past, going = irregular[verb]
        return third, past, going
    if re.search(r"[^aeiou]y$", verb):
        return _with_s(verb), verb[:-1] + "ied", verb + "ing"
    if verb.endswith("e"):
        return verb + "s", verb + "d", (verb if verb.endswith("ee") else verb[:-1]) + "ing"
    return _with_s(verb), verb + "ed", verb + "ing"


def indefinite_article(following: str) -> str:
    """``a`` or ``an``, by the sound that the following text begins with.

    Example:
        >>> [indefinite_article(word) for word in ("umbrella", "unicorn", "hour", "8-year-old", "SUV", "orange")]
        ['an', 'a', 'an', 'an', 'an', 'an']
    """
    word = re.split(r"[\s,.;:!?-]", following, maxsplit=1)[0] if not following[:1].isdigit() else following
    if word[:1].isdigit():
        return "an" if _AN_NUMBER.match(word) else "a"
    if word.isupper() and (len(word) == 1 or not re.search("[AEIOUY]", word) or len(word) <= 3):
        return "an" if word[0] in _VOWEL_LETTERS else "a"
    word = word.lower()
    if _AN_DESPITE_CONSONANT.match(word):
        return "an"
    return "an" if word[:1] in tuple("aeiou") and not _A_DESPITE_VOWEL.match(word) else "a"


def cased_like(model: str, text: str) -> str:
    """A text in the capitals of another: ALL CAPS, Each Word, or First letter; else as it is.

    Example:
        >>> cased_like("Dog", "cat"), cased_like("RED BUS", "car"), cased_like("Traffic Light", "stop sign")
        ('Cat', 'CAR', 'Stop Sign')
    """
    letters = [character for character in model if character.isalpha()]
    if len(letters) > 1 and all(character.isupper() for character in letters):
        return text.upper()
    words = model.split()
    if len(words) > 1 and all(word[:1].isupper() for word in words):
        return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))
    return text[:1].upper() + text[1:] if model[:1].isupper() else text


def _with_s(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"
