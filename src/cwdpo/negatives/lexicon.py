"""The lexicon: which words exclude each other in a picture, and where each may be touched."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cwdpo.negatives.inflection import plural_of, verb_forms

KINDS = (
    "object",
    "colour",
    "size",
    "material",
    "age",
    "state",
    "count",
    "relation",
    "action",
    "order",
    "yes_no",
    "choice",
    "number",
)
"""What an edit can change."""

FORMS = ("word", "noun", "mass", "verb")
CONDITIONS = (
    "prev",
    "next",
    "not_prev",
    "not_next",
    "near",
    "not_near",
    "after",
    "not_after",
    "anywhere",
    "not_anywhere",
)

Conditions = Mapping[str, Sequence[str]]
"""Where a word may be touched: for each of :data:`CONDITIONS` words, ``<class>`` names and ``*endings``."""


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


@dataclass(frozen=True)
class Sense:
    """One reading of a word or phrase."""

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
        """Every written form with its readings, lower case but for proper names."""
        found: dict[str, list[Sense]] = {}
        for group in self.groups.values():
            for base, targets in _exchanges(group):
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
        """A word in the form in which a reading stands."""
        return dict(self.forms(base, sense.group.form))[sense.form]


def _exchanges(group: Group) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    """Each word of a group with what it may be exchanged for."""
    for index, member in enumerate(group.members):
        for word in member:
            yield word, tuple(other for place, other in enumerate(group.members) if place != index)
    for word, targets in group.turns.items():
        yield word, tuple((target,) for target in targets)
