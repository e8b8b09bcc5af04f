"""Read a lexicon file: the one that comes with the package, and a user's own on top of it."""

import difflib
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cwdpo.config import located_yaml
from cwdpo.errors import ConfigError
from cwdpo.negatives.lexicon import CONDITIONS, FORMS, KINDS, Conditions, Group, Lexicon

_SECTIONS = ("keep", "classes", "asymmetric", "plurals", "verbs", "groups")
_GROUP_KEYS = ("kind", "form", "members", "turns", "guards", "animate", *CONDITIONS)
_SUBSTITUTED = ("object", "colour", "size", "material", "age", "state", "relation", "action", "number")
_BUILT_IN = ("start", "end", "noun", "content", "number", "animate", *KINDS)
_EXAMPLE = "groups: {buildings: {kind: object, form: noun, members: [church, castle]}}"


def read_lexicon(extension: str | Path | None = None) -> Lexicon:
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


def parse_lexicon(text: str, name: str, *, onto: Lexicon | None = None) -> Lexicon:
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
    base = onto or Lexicon({})
    lexicon = reader.lexicon(base)
    reader.check_classes(lexicon)
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return lexicon


@functools.cache
def _shipped() -> Lexicon:
    text = (files("cwdpo.negatives") / "lexicon.yaml").read_text("utf-8")
    return parse_lexicon(text, "lexicon.yaml")


@dataclass
class _Reader:
    """Checks values on their way in, and collects what is wrong with them."""

    values: Mapping[str, Any]
    lines: Mapping[located_yaml.Path, int]
    name: str
    problems: list[str]

    def lexicon(self, base: Lexicon) -> Lexicon:
        self._known(self.values, _SECTIONS, ())
        groups = dict(base.groups)
        for name, value in self._mapping(("groups",)).items():
            if value is None:
                groups.pop(name, None)
                continue
            group = self._group(name, value)
            if group is not None:
                groups[name] = group
        classes = dict(base.classes)
        for name in self._mapping(("classes",)):
            words = frozenset(self._texts(("classes", name), phrases=False))
            classes[name] = classes.get(name, frozenset()) | words
        verbs = {verb: self._texts(("verbs", verb)) for verb in self._mapping(("verbs",))}
        for verb, forms in verbs.items():
            if len(forms) != 3:
                self._say(("verbs", verb), f"has {len(forms)} forms, but needs three: [sits, sat, sitting]")
        plurals = {noun: self._text(("plurals", noun), value) for noun, value in self._mapping(("plurals",)).items()}
        return Lexicon(
            groups=groups,
            keep=base.keep | frozenset(self._texts(("keep",))),
            classes=classes,
            asymmetric=base.asymmetric | frozenset(self._texts(("asymmetric",))),
            plurals={**base.plurals, **plurals},
            verbs={**base.verbs, **verbs},
        )

    def check_classes(self, lexicon: Lexicon) -> None:
        """Every ``<class>`` that this file names must exist."""
        known = (*_BUILT_IN, *lexicon.classes)
        for name in self._mapping(("groups",)):
            group = lexicon.groups.get(name)
            if group is None:
                continue
            for conditions in (group.conditions, *group.guards.values()):
                for item in (item for items in conditions.values() for item in items):
                    if item.startswith("<") and item[1:-1] not in known:
                        self._say(("groups", name), f"names the class {item}{_near(item[1:-1], known)}")

    def _group(self, name: str, value: Any) -> Group | None:
        path, before = ("groups", name), len(self.problems)
        if not isinstance(value, dict):
            self._say(path, f"must be keys and values, such as `kind: object`, but is {value!r:.40}")
            return None
        self._known(value, _GROUP_KEYS, path)
        kind, form = self._choice(path, "kind", _SUBSTITUTED, None), self._choice(path, "form", FORMS, "word")
        if not isinstance(value.get("animate", False), bool):
            self._say((*path, "animate"), "must be true or false")
        members = self._members(path) if "members" in value else ()
        turns = {word: tuple(self._texts((*path, "turns", word))) for word in self._mapping((*path, "turns"))}
        if ("members" in value) == ("turns" in value):
            self._say(path, "needs either `members: [a, b]` or `turns: {a: [b]}`, and not both")
        guards = {word: self._conditions((*path, "guards", word)) for word in self._mapping((*path, "guards"))}
        written = {*turns, *(word for member in members for word in member)}
        for word in guards:
            if word not in written:
                self._say((*path, "guards", word), f"guards no word of the group{_near(word, sorted(written))}")
        if len(self.problems) > before:
            return None
        animate = bool(value.get("animate", False))
        return Group(name, kind, members, turns, form, self._conditions(path), guards, animate)

    def _members(self, path: located_yaml.Path) -> tuple[tuple[str, ...], ...]:
        here = (*path, "members")
        texts = self._texts(here)
        members = tuple(tuple(word.strip() for word in text.split("|")) for text in texts)
        words = [word for member in members for word in member]
        if len(members) < 2:
            self._say(here, "needs two members at least, or there is nothing to exchange")
        for word in dict.fromkeys(word for word in words if words.count(word) > 1):
            self._say(here, f"has {word!r} twice. Keep one; synonyms are written as one member, couch|sofa")
        if not all(words):
            self._say(here, "has a member without letters. Take out the stray `|`")
        return members

    def _conditions(self, path: located_yaml.Path) -> Conditions:
        value = self._at(path)
        if not isinstance(value, dict):
            self._say(path, "must be conditions, such as {next: [door, window]}")
            return {}
        if "guards" in path:
            self._known(value, CONDITIONS, path)
        return {key: tuple(self._texts((*path, key), phrases=False)) for key in value if key in CONDITIONS}

    def _choice(self, path: located_yaml.Path, key: str, choices: Collection[str], default: str | None) -> str:
        value = self._at(path).get(key, default)
        if value in choices:
            return str(value)
        told = "is missing" if value is None else f"is {value!r}"
        near = _near(str(value), choices) if value is not None else f". Write one of {', '.join(choices)}"
        self._say((*path, key), f"{told}{near}")
        return ""

    def _texts(self, path: located_yaml.Path, *, phrases: bool = True) -> list[str]:
        value = self._at(path)
        if value is None:
            return []
        if not isinstance(value, list):
            self._say(path, "must be a list of words, such as [red, blue]")
            return []
        texts = [self._text(path, item) for item in value]
        for text in texts:
            if not phrases and " " in text:
                self._say(path, f"holds {text!r}, but is compared with single words. Write one word")
        return texts

    def _text(self, path: located_yaml.Path, value: Any) -> str:
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
        shown = {True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value)
        self._say(path, f'holds {shown}, which is not a word. Quote it: "on", "no", "7"')
        return "?"

    def _mapping(self, path: located_yaml.Path) -> dict[str, Any]:
        value = self._at(path)
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._say(path, "must be keys and values")
        return {}

    def _at(self, path: located_yaml.Path) -> Any:
        value: Any = self.values
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _known(self, value: Mapping[str, Any], known: Collection[str], path: located_yaml.Path) -> None:
        for key in value:
            if key not in known:
                self._say((*path, key), f"is no key of a lexicon{_near(key, known)}")

    def _say(self, path: located_yaml.Path, problem: str) -> None:
        place = path
        while place and place not in self.lines:
            place = place[:-1]
        line = f"{self.name}:{self.lines[place]}: '{'.'.join(path)}' {problem}."
        if line not in self.problems:
            self.problems.append(line)


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {near[0]!r}?".rstrip(".") if near else f". Known here: {', '.join(known)}"[:400]
