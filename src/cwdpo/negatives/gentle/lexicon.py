"""The lexicon: which words exclude each other in a picture, where each may be exchanged, and the forms of words."""

import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

from cwdpo.config import located_yaml
from cwdpo.errors import ConfigError

ATTRIBUTES = ("colour", "size", "material", "age", "state")
KINDS = ("object", *ATTRIBUTES, "count", "relation", "action", "order", "yes_no", "choice", "number")
"""What an edit can change."""

FORMS = ("word", "noun", "mass", "verb")
CONDITIONS = tuple(f"{no}{place}" for place in ("prev", "next", "near", "after", "anywhere") for no in ("", "not_"))

Conditions: TypeAlias = Mapping[str, Sequence[str]]
"""Where a word may be exchanged: for each of :data:`CONDITIONS` words, ``<class>`` names and ``*endings``."""


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
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Correct the path, or leave out --lexicon.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {problem}. Give a YAML file.") from None
    return parse_lexicon(text, str(path), onto=_shipped())


def parse_lexicon(text: str, name: str, *, onto: "Lexicon | None" = None) -> "Lexicon":
    """A lexicon from YAML text.

    Args:
        text: the file's content.
        name: the file as messages call it.
        onto: what it is added to; None for one that stands alone.

    Raises:
        ConfigError: every mistake on a line of its own.
    """
    if not text.strip():
        raise ConfigError(f"{name}: the lexicon is empty. Write for example\n  {_EXAMPLE}")
    file = located_yaml.load(text, name)
    reader = _Reader(file.values, file.lines, name, [])
    lexicon = reader.lexicon(onto or Lexicon({}))
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return lexicon


@functools.cache
def _shipped() -> "Lexicon":
    return parse_lexicon((files("cwdpo.negatives.gentle") / "lexicon.yaml").read_text("utf-8"), "lexicon.yaml")


@dataclass(frozen=True)
class Group:
    """Words that may be exchanged for one another."""

    name: str
    kind: str
    members: tuple[tuple[str, ...], ...]
    """Each member with its synonyms; the first of them is what is written."""

    turns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """One-way exchanges."""

    form: str = "word"
    conditions: Conditions = field(default_factory=dict)
    guards: Mapping[str, Conditions] = field(default_factory=dict)
    """Further conditions of single words."""

    animate: bool = False

    def exchanges(self) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
        """Each word with the members that it may be exchanged for."""
        for member in self.members:
            for word in member:
                yield word, tuple(other for other in self.members if other is not member)
        for word, targets in self.turns.items():
            yield word, tuple((target,) for target in targets)


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


_SECTIONS = ("keep", "classes", "asymmetric", "plurals", "verbs", "groups")
_GROUP_KEYS = ("kind", "form", "members", "turns", "guards", "animate", *CONDITIONS)
_SUBSTITUTED = ("object", *ATTRIBUTES, "relation", "action", "number")
_BUILT_IN = ("start", "end", "noun", "content", "number", "animate", *KINDS)
_EXAMPLE = "groups: {buildings: {kind: object, form: noun, members: [church, castle]}}"


@dataclass
class _Reader:
    """Checks values on their way in, and collects what is wrong with them."""

    values: Mapping[str, Any]
    lines: Mapping[located_yaml.KeyPath, int]
    name: str
    problems: list[str]

    def lexicon(self, base: Lexicon) -> Lexicon:
        self._check_keys(self.values, _SECTIONS, ())
        groups, own = dict(base.groups), dict[str, Group]()
        for name, value in self._mapping(("groups",)).items():
            group = None if value is None else self._group(name, value)
            if value is None:
                groups.pop(name, None)
            elif group is not None:
                groups[name] = own[name] = group
        classes = dict(base.classes)
        for name in self._mapping(("classes",)):
            words = frozenset(self._texts(("classes", name), phrases=False))
            classes[name] = classes.get(name, frozenset()) | words
        verbs = {verb: self._texts(("verbs", verb)) for verb in self._mapping(("verbs",))}
        for verb, forms in verbs.items():
            if len(forms) != 3:
                self._report(("verbs", verb), f"has {len(forms)} forms, but needs three: [sits, sat, sitting]")
        plurals = {noun: self._text(("plurals", noun), value) for noun, value in self._mapping(("plurals",)).items()}
        keep, asymmetric = (frozenset(self._texts((section,))) for section in ("keep", "asymmetric"))
        for name, group in own.items():
            for conditions in (group.conditions, *group.guards.values()):
                for item in (item for items in conditions.values() for item in items):
                    if item.startswith("<") and item[1:-1] not in (*_BUILT_IN, *classes):
                        near = _near(item[1:-1], (*_BUILT_IN, *classes))
                        self._report(("groups", name), f"names the class {item}{near}")
        return Lexicon(
            groups=groups,
            keep=base.keep | keep,
            classes=classes,
            asymmetric=base.asymmetric | asymmetric,
            plurals={**base.plurals, **plurals},
            verbs={**base.verbs, **verbs},
        )

    def _group(self, name: str, value: object) -> Group | None:
        path, before = ("groups", name), len(self.problems)
        if not isinstance(value, dict):
            self._report(path, f"must be keys and values, such as `kind: object`, but is {value!r:.40}")
            return None
        self._check_keys(value, _GROUP_KEYS, path)
        kind, form = self._choice(path, "kind", _SUBSTITUTED, None), self._choice(path, "form", FORMS, "word")
        animate = value.get("animate", False)
        if not isinstance(animate, bool):
            self._report((*path, "animate"), "must be true or false")
        members = self._members((*path, "members")) if "members" in value else ()
        turns = {word: tuple(self._texts((*path, "turns", word))) for word in self._mapping((*path, "turns"))}
        if ("members" in value) == ("turns" in value):
            self._report(path, "needs either `members: [a, b]` or `turns: {a: [b]}`, and not both")
        guards = {word: self._conditions((*path, "guards", word)) for word in self._mapping((*path, "guards"))}
        written = {*turns, *(word for member in members for word in member)}
        for word in guards:
            if word not in written:
                self._report((*path, "guards", word), f"guards no word of the group{_near(word, sorted(written))}")
        if len(self.problems) > before:
            return None
        return Group(name, kind, members, turns, form, self._conditions(path), guards, animate)

    def _members(self, path: located_yaml.KeyPath) -> tuple[tuple[str, ...], ...]:
        members = tuple(tuple(word.strip() for word in text.split("|")) for text in self._texts(path))
        words = [word for member in members for word in member]
        if len(members) < 2:
            self._report(path, "needs two members at least, or there is nothing to exchange")
        for word in dict.fromkeys(word for word in words if words.count(word) > 1):
            self._report(path, f"has {word!r} twice. Keep one; synonyms are written as one member, couch|sofa")
        if not all(words):
            self._report(path, "has a member without letters. Take out the stray `|`")
        return members

    def _conditions(self, path: located_yaml.KeyPath) -> Conditions:
        value = self._at(path)
        if not isinstance(value, dict):
            self._report(path, "must be conditions, such as {next: [door, window]}")
            return {}
        if "guards" in path:
            self._check_keys(value, CONDITIONS, path)
        return {key: tuple(self._texts((*path, key), phrases=False)) for key in value if key in CONDITIONS}

    def _choice(self, path: located_yaml.KeyPath, key: str, choices: Collection[str], default: str | None) -> str:
        value = self._at(path).get(key, default)
        if value in choices:
            return str(value)
        missing = f"is missing. Write one of {', '.join(choices)}"
        self._report((*path, key), missing if value is None else f"is {value!r}{_near(str(value), choices)}")
        return ""

    def _texts(self, path: located_yaml.KeyPath, *, phrases: bool = True) -> list[str]:
        value = self._at(path)
        if value is None:
            return []
        if not isinstance(value, list):
            self._report(path, "must be a list of words, such as [red, blue]")
            return []
        texts = [self._text(path, item) for item in value]
        for text in texts:
            if not phrases and " " in text:
                self._report(path, f"holds {text!r}, but is compared with single words. Write one word")
        return texts

    def _text(self, path: located_yaml.KeyPath, value: object) -> str:
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        self._report(path, f'holds {shown}, which is not a word. Quote it: "on", "no", "7"')
        return "?"

    def _mapping(self, path: located_yaml.KeyPath) -> dict[str, Any]:
        value = self._at(path)
        if value is None or isinstance(value, dict):
            return value or {}
        self._report(path, "must be keys and values")
        return {}

    def _at(self, path: located_yaml.KeyPath) -> Any:
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _check_keys(self, value: Mapping[str, object], known: Collection[str], path: located_yaml.KeyPath) -> None:
        for key in value:
            if key not in known:
                self._report((*path, key), f"is not a key of a lexicon{_near(key, known)}")

    def _report(self, path: located_yaml.KeyPath, problem: str) -> None:
        place = path
        while place and place not in self.lines:
            place = place[:-1]
        line = f"{self.name}:{self.lines[place]}: '{'.'.join(path)}' {problem}."
        if line not in self.problems:
            self.problems.append(line)


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {near[0]!r}?".rstrip(".") if near else f". Known here: {', '.join(known)}"[:400]
