"""The lexicon: which words exclude each other in a picture, where each may be exchanged, and the forms of words."""

import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails

from cwdpo.config import located_yaml
from cwdpo.contents import LEXICON, refusal
from cwdpo.errors import ConfigError

ATTRIBUTES = ("colour", "size", "material", "age", "state")
KINDS = ("object", *ATTRIBUTES, "count", "relation", "action", "order", "yes_no", "choice", "number")
"""What an edit can change."""


def read_lexicon(extension: str | Path | None = None) -> "Lexicon":
    """The package's lexicon, with a user's own file on top where one is named.

    In the user's file a group of a known name takes its place, and null takes it out; other sections are added to.

    Raises:
        ConfigError: names ``file:line`` and says what to write.
    """
    if extension is None:
        return _shipped()
    path = Path(extension)
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise refusal(path, LEXICON, ConfigError) from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {problem}. Give a YAML file.") from None
    return parse_lexicon(text, str(path), onto=_shipped())


def parse_lexicon(text: str, name: str, *, onto: "Lexicon | None" = None) -> "Lexicon":
    """A lexicon from the text of a YAML file, which messages call ``name``; added to another where one is given.

    Raises:
        ConfigError: every mistake on a line of its own.
    """
    if not text.strip():
        example = "groups: {buildings: {kind: object, form: noun, members: [church, castle]}}"
        raise ConfigError(f"{name}: the lexicon is empty. Write for example\n  {example}")
    values, lines = located_yaml.load(text, name)
    try:
        file = _File.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        problems = [_explain(detail) for detail in error.errors(include_url=False)]
    else:
        lexicon = file.added_to(onto or Lexicon({}))
        problems = list(file.mistakes(lexicon.classes))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(_located(path, what, lines, name) for path, what in problems)))
    return lexicon


@functools.cache
def _shipped() -> "Lexicon":
    return parse_lexicon((files("cwdpo.negatives.gentle") / "lexicon.yaml").read_text("utf-8"), "lexicon.yaml")


def _word(value: object) -> str:
    if isinstance(value, str) and value.strip():
        return " ".join(value.split())
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    raise ValueError(f'holds {shown}, which is not a word. Quote it: "on", "no", "7"')


def _single_word(value: object) -> str:
    if " " in (text := _word(value)):
        raise ValueError(f"holds {text!r}, but is compared with single words. Write one word")
    return text


def _member(value: object) -> tuple[str, ...]:
    return tuple(word.strip() for word in _word(value).split("|"))


_Word: TypeAlias = Annotated[str, BeforeValidator(_word)]
_SingleWords: TypeAlias = list[Annotated[str, BeforeValidator(_single_word)]]
_Mistakes: TypeAlias = Iterator[tuple[located_yaml.KeyPath, str]]
"""Where each is in the file, and what it is."""


class Place(BaseModel, extra="forbid", strict=True, frozen=True):
    """Where a word may be exchanged: words, ``<class>`` names and ``*endings``."""

    prev: _SingleWords = []
    not_prev: _SingleWords = []
    next: _SingleWords = []
    not_next: _SingleWords = []
    near: _SingleWords = []
    not_near: _SingleWords = []
    after: _SingleWords = []
    not_after: _SingleWords = []
    anywhere: _SingleWords = []
    not_anywhere: _SingleWords = []

    @cached_property
    def conditions(self) -> Mapping[str, Sequence[str]]:
        """Those that are given."""
        return {name: getattr(self, name) for name in Place.model_fields if name in self.model_fields_set}


class Group(Place, frozen=True):
    """Words that may be exchanged for one another."""

    kind: Literal["object", "colour", "size", "material", "age", "state", "relation", "action", "number"]
    form: Literal["word", "noun", "mass", "verb"] = "word"
    members: list[Annotated[tuple[str, ...], BeforeValidator(_member)]] = []
    """Each member with its synonyms; the first of them is what is written."""

    turns: dict[str, list[_Word]] = {}
    """One-way exchanges."""

    guards: dict[str, Place] = {}
    """Further conditions of single words."""

    animate: bool = False

    def exchanges(self) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
        """Each word with the members that it may be exchanged for."""
        for member in self.members:
            for word in member:
                yield word, tuple(other for other in self.members if other is not member)
        for word, targets in self.turns.items():
            yield word, tuple((target,) for target in targets)

    def mistakes(self, classes: Collection[str]) -> _Mistakes:
        """What is wrong though every value is of the right type."""
        words = [word for member in self.members for word in member]
        if ("members" in self.model_fields_set) == ("turns" in self.model_fields_set):
            yield (), "needs either `members: [a, b]` or `turns: {a: [b]}`, and not both"
        elif len(self.members) < 2 and not self.turns:
            yield ("members",), "needs two members at least, or there is nothing to exchange"
        for word in words:
            if words.count(word) > 1:
                yield ("members",), f"has {word!r} twice. Keep one; synonyms are written as one member, couch|sofa"
            elif not word:
                yield ("members",), "has a member without letters. Take out the stray `|`"
        written, known = sorted({*words, *self.turns}), (*_BUILT_IN, *classes)
        for word in self.guards:
            if word not in written:
                yield ("guards", word), f"guards no word of the group{_near(word, written)}"
        for item in chain.from_iterable(chain(*(p.conditions.values() for p in (self, *self.guards.values())))):
            if item.startswith("<") and item[1:-1] not in known:
                yield (), f"names the class {item}{_near(item[1:-1], known)}"


@dataclass(frozen=True)
class Sense:
    """One meaning of a word or phrase."""

    group: Group
    base: str
    """The word as the lexicon has it."""

    form: str
    """``word``, ``singular``, ``plural``, ``base``, ``third``, ``past`` or ``going``."""

    targets: tuple[tuple[str, ...], ...]
    """What may stand in its place, each with its synonyms."""

    @property
    def is_noun(self) -> bool:
        """Whether it names a thing."""
        return self.group.kind == "object"


@dataclass(frozen=True)
class Lexicon:
    """Groups, and what is needed to find and write the forms of their words."""

    groups: Mapping[str, Group]
    keep: frozenset[str] = frozenset()
    """Phrases that nothing is changed in."""

    classes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    asymmetric: frozenset[str] = frozenset()
    """Relations that become wrong when the two things change places."""

    plurals: Mapping[str, str] = field(default_factory=dict)
    verbs: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def senses(self) -> Mapping[str, tuple[Sense, ...]]:
        """Every written form with its meanings, lower case but for proper names."""
        found: dict[str, list[Sense]] = {}
        for group in self.groups.values():
            for base, targets in group.exchanges():
                allowed = tuple(target for target in targets if not self.are_synonyms(base, target[0]))
                for form, written in self.forms(base, group.form):
                    found.setdefault(written, []).append(Sense(group, base, form, allowed))
        return {written: tuple(senses) for written, senses in found.items()}

    @cached_property
    def longest(self) -> int:
        """Most words that a phrase has."""
        phrases = (*self.senses, *self.keep, *self.asymmetric)
        return max((phrase.count(" ") + 1 for phrase in phrases), default=1)

    @cached_property
    def _synonyms(self) -> frozenset[tuple[str, str]]:
        members = [member for group in self.groups.values() for member in group.members]
        return frozenset((one, other) for member in members for one in member for other in member)

    def are_synonyms(self, one: str, other: str) -> bool:
        """Whether two words stand for one member anywhere, or are the same."""
        return one == other or (one, other) in self._synonyms

    def forms(self, base: str, form: str) -> Iterator[tuple[str, str]]:
        """Each form of a word by its name."""
        if form == "noun":
            yield "singular", base
            yield "plural", plural_of(base, self.plurals)
        elif form == "verb":
            yield from zip(("base", "third", "past", "going"), (base, *verb_forms(base, self.verbs)), strict=True)
        else:
            yield "word", base

    def write(self, base: str, sense: Sense) -> str:
        """A word in the form that a sense has."""
        return dict(self.forms(base, sense.group.form))[sense.form]


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


_A_DESPITE_VOWEL = re.compile(r"eu|ew|one(?![a-z])|once|uk|ubi|uni(?![nmd])|us[aeu]|ut[aeio]|ur[aiou]|uga")
_AN_DESPITE_CONSONANT = re.compile(r"hour|honest|hono|heir")
_AN_NUMBER = re.compile(r"8|1[18](?!\d)|1[18](?=[,.]?\d{3}(?!\d))")
_VOWEL_LETTERS = frozenset("AEFHILMNORSX")


def indefinite_article(following: str) -> str:
    """``a`` or ``an``, by the sound that the following text begins with.

    Example:
        >>> [indefinite_article(word) for word in ("umbrella", "unicorn", "hour", "8-year-old", "SUV", "orange")]
        ['an', 'a', 'an', 'an', 'an', 'an']
    """
    if following[:1].isdigit():
        return "an" if _AN_NUMBER.match(following) else "a"
    word = re.split(r"[\s,.;:!?-]", following, maxsplit=1)[0]
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
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


_BUILT_IN = ("start", "end", "noun", "content", "number", "animate", *KINDS)


class _File(BaseModel, extra="forbid", strict=True):
    keep: list[_Word] = []
    classes: dict[str, _SingleWords] = {}
    asymmetric: list[_Word] = []
    plurals: dict[str, _Word] = {}
    verbs: dict[str, list[_Word]] = {}
    groups: dict[str, Group | None] = {}

    def added_to(self, base: Lexicon) -> Lexicon:
        classes = {name: base.classes.get(name, frozenset()).union(words) for name, words in self.classes.items()}
        return Lexicon(
            groups={name: group for name, group in {**base.groups, **self.groups}.items() if group is not None},
            keep=base.keep.union(self.keep),
            classes={**base.classes, **classes},
            asymmetric=base.asymmetric.union(self.asymmetric),
            plurals={**base.plurals, **self.plurals},
            verbs={**base.verbs, **self.verbs},
        )

    def mistakes(self, classes: Collection[str]) -> _Mistakes:
        for verb, forms in self.verbs.items():
            if len(forms) != 3:
                yield ("verbs", verb), f"has {len(forms)} forms, but needs three: [sits, sat, sitting]"
        for name, group in self.groups.items():
            for path, problem in group.mistakes(classes) if group is not None else ():
                yield ("groups", name, *path), problem


def _explain(detail: ErrorDetails) -> tuple[located_yaml.KeyPath, str]:
    """Where a mistake is and what it is, from what pydantic says of it."""
    path = tuple(key for key in detail["loc"] if isinstance(key, str))
    if detail["type"] == "value_error":
        return path, str(detail["ctx"]["error"])
    section = _File if len(path) == 1 else Group if len(path) == 3 else Place
    if detail["type"] == "extra_forbidden":
        return path, f"is not a key of a lexicon{_near(path[-1], section.model_fields)}"
    if detail["type"] in ("missing", "literal_error"):
        choices, value = get_args(section.model_fields[path[-1]].annotation), detail["input"]
        missing = f"is missing. Write one of {', '.join(choices)}"
        return path, missing if detail["type"] == "missing" else f"is {value!r}{_near(str(value), choices)}"
    expected = {"list_type": "a list of words, such as [red, blue]", "bool_type": "true or false"}
    return path, f"must be {expected.get(detail['type'], 'keys and values, such as `kind: object`')}"


def _located(path: located_yaml.KeyPath, problem: str, lines: Mapping[located_yaml.KeyPath, int], name: str) -> str:
    """A problem with the line of its key, or of the nearest section around it."""
    line = next(lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines)
    return f"{name}:{line}: '{'.'.join(path)}' {problem}."


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {near[0]!r}?".rstrip(".") if near else f". Known here: {', '.join(known)}"[:400]
