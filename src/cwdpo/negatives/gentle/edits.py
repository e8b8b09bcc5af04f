"""A text as the lexicon sees it (words, phrases, neighbours), the edits that change it, and what stays as it is."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from cwdpo.negatives.gentle.lexicon import KINDS, Lexicon, Sense, indefinite_article

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

Span: TypeAlias = tuple[int, int]
"""Characters ``(start, end)``."""


@dataclass(frozen=True, slots=True)
class Part:
    """Characters ``start`` to ``end`` of the original become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One error: one part, or several that change together, in the order of the text."""

    kind: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class GentleNegative:
    """A wrong answer and what is wrong in it. Outside its parts the two texts are the same character for character."""

    text: str
    kind: str
    """One of :data:`cwdpo.negatives.gentle.lexicon.KINDS`."""

    parts: tuple[tuple[Span, Span], ...]
    """Of each place that changed, its characters ``(start, end)`` in the right answer and in this one."""

    @property
    def before(self) -> Span:
        """Characters of the right answer from the first change to the last."""
        return self.parts[0][0][0], self.parts[-1][0][1]

    @property
    def after(self) -> Span:
        """Characters of the wrong answer that stand in their place."""
        return self.parts[0][1][0], self.parts[-1][1][1]


_WORD = re.compile(r"\d+(?:[.,:/]\d+)*(?![^\W_])|[^\W_]+(?:[-'\u2019./][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?:^|[.!?:]|\n)[\s\"'\u201c\u2018(\[*#-]*$")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|mt|no|vs|prof|[a-z])\.\s*$", re.IGNORECASE)
_REACH = 4
_MOST_WORDS_TO_NOUN = 3
_EDGE = re.compile(r"[^\s\"'\u201c\u201d\u2018\u2019]")


@dataclass(frozen=True, slots=True)
class Token:
    """One word with its place in the text."""

    start: int
    end: int
    text: str
    lower: str


@dataclass(frozen=True, slots=True)
class Phrase:
    """Tokens ``first`` to ``last`` (exclusive) that the lexicon knows together."""

    first: int
    last: int
    senses: tuple[Sense, ...]
    kept: bool = False
    relation: bool = False


class Reading:
    """A text taken apart once, for all kinds of edits."""

    def __init__(self, text: str, lexicon: Lexicon) -> None:
        self.text = text
        self.lexicon = lexicon
        self.tokens = [Token(m.start(), m.end(), m.group(), m.group().lower()) for m in _WORD.finditer(text)]
        self.phrases = list(self._phrases())
        self.at = {index: phrase for phrase in self.phrases for index in range(phrase.first, phrase.last)}
        self.words = frozenset(token.lower for token in self.tokens)

    @cached_property
    def shape(self) -> str:
        """``upper`` for a text in capitals, ``title`` for One In Title Case, else ``normal``."""
        letters = [character for character in self.text if character.isalpha()]
        if len(letters) > 1 and not any(character.islower() for character in letters):
            return "upper"
        long = [token.text for token in self.tokens if len(token.text) > 3 and token.text[0].isalpha()]
        capital = sum(word[0].isupper() for word in long)
        return "title" if len(long) > 1 and capital == len(long) else "normal"

    def neighbour(self, index: int, step: int) -> int | None:
        """The token before (-1) or after (1) a token in the same clause; None at the clause's edge."""
        other = index + step
        if not 0 <= other < len(self.tokens):
            return None
        left, right = sorted((index, other))
        gap = self.text[self.tokens[left].end : self.tokens[right].start]
        return None if _EDGE.search(gap) else other

    def around(self, index: int, step: int, reach: int = _REACH) -> list[int]:
        """Up to ``reach`` tokens on one side of a token, nearest first, in the same clause."""
        found: list[int] = []
        while len(found) < reach and (here := self.neighbour(found[-1] if found else index, step)) is not None:
            found.append(here)
        return found

    def starts_sentence(self, start: int) -> bool:
        """Whether a sentence begins at this character."""
        before = self.text[:start]
        return _SENTENCE_END.search(before) is not None and _ABBREVIATION.search(before) is None

    def span(self, phrase: Phrase) -> Span:
        return self.tokens[phrase.first].start, self.tokens[phrase.last - 1].end

    def text_of(self, phrase: Phrase) -> str:
        return self.text[slice(*self.span(phrase))]

    def senses(self, index: int | None) -> tuple[Sense, ...]:
        """The senses of the phrase that a token belongs to; none where the lexicon does not know it."""
        return self.at[index].senses if index is not None and index in self.at else ()

    def is_noun(self, index: int | None) -> bool:
        """Whether a token belongs to a thing that the lexicon knows."""
        return any(sense.is_noun for sense in self.senses(index))

    def is_plural(self, index: int | None) -> bool:
        """Whether a token belongs to a plural noun."""
        return any(sense.form == "plural" for sense in self.senses(index))

    def lower(self, index: int | None) -> str:
        """A token in small letters; empty for None, the edge of a clause."""
        return "" if index is None else self.tokens[index].lower

    def is_content(self, index: int) -> bool:
        """Whether a token is a word with a meaning of its own."""
        return self.lower(index)[0].isalpha() and not self.in_class(index, "function")

    def is_number(self, index: int) -> bool:
        """Whether a token is a number in digits or a small one in words."""
        return self.lower(index)[0].isdigit() or self.lower(index) in NUMBER_WORDS

    def in_class(self, index: int | None, name: str) -> bool:
        """Whether a token is in one of the lexicon's classes."""
        return self.lower(index) in self.lexicon.classes.get(name, frozenset())

    def head(self, phrase: Phrase) -> Phrase | None:
        """The thing that an attribute before it belongs to."""
        for index in self.around(phrase.last - 1, 1, _MOST_WORDS_TO_NOUN):
            if not self.is_content(index):
                return None
            if self.is_noun(index):
                after = self.neighbour(self.at[index].last - 1, 1)
                return None if after is not None and self.is_noun(after) else self.at[index]
        return None

    def are_one_sort(self, one: Phrase, other: Phrase) -> bool:
        """Whether two phrases could name the same sort of thing."""
        words = [[sense.base for sense in phrase.senses] for phrase in (one, other)]
        return any(self.lexicon.are_synonyms(a, b) for a in words[0] for b in words[1])

    def fits(self, item: str, index: int | None, edge: str) -> bool:
        """Whether a token, or the clause's edge, is what a condition names."""
        if index is None:
            return item == edge
        lower = self.tokens[index].lower
        if item.startswith("*"):
            return lower.endswith(item[1:])
        if not item.startswith("<"):
            return lower == item
        name = item[1:-1]
        if name == "animate":
            return any(sense.group.animate for sense in self.senses(index))
        known = {"noun": self.is_noun, "content": self.is_content, "number": self.is_number}
        if name in known:
            return known[name](index)
        if name in KINDS:
            return any(sense.group.kind == name for sense in self.senses(index))
        return self.in_class(index, name)

    def allows(self, conditions: Mapping[str, Sequence[str]], phrase: Phrase) -> bool:
        """Whether a phrase stands where its conditions want it."""
        before, after = phrase.first, phrase.last - 1
        places: dict[str, tuple[Sequence[int | None], str]] = {
            "prev": ([self.neighbour(before, -1)], "<start>"),
            "next": ([self.neighbour(after, 1)], "<end>"),
            "after": (self.around(before, -1), "<start>"),
            "near": (self.around(after, 1), "<end>"),
            "anywhere": ([index for index in range(len(self.tokens)) if not before <= index <= after], ""),
        }
        for name, items in conditions.items():
            where, edge = places[name.removeprefix("not_")]
            hit = any(self.fits(item, index, edge) for item in items for index in where)
            if hit == name.startswith("not_"):
                return False
        return True

    def _phrases(self) -> Iterator[Phrase]:
        """The longest known phrases from left to right."""
        end = 0
        for index in range(len(self.tokens)):
            if index >= end and (found := self._longest_at(index)) is not None:
                yield found
                end = found.last

    def _longest_at(self, first: int) -> Phrase | None:
        best, exact = None, ""
        for last in range(first + 1, min(first + self.lexicon.longest, len(self.tokens)) + 1):
            gap = self.text[self.tokens[last - 2].end : self.tokens[last - 1].start] if exact else ""
            if exact and gap != " ":
                break
            exact += gap + self.tokens[last - 1].text
            words = exact.lower()
            senses = self.lexicon.senses.get(exact, ()) or self.lexicon.senses.get(words, ())
            kept, relation = words in self.lexicon.keep, words in self.lexicon.asymmetric
            if senses or kept or relation:
                best = Phrase(first, last, () if kept else senses, kept, relation)
        return best


def apply(edit: Edit, reading: Reading) -> GentleNegative:
    """Put an edit into its text; an article before a changed word is changed with it where its sound asks for it."""
    text, end, spans = "", 0, []
    for part in (_with_article(part, reading) for part in edit.parts):
        text += reading.text[end : part.start]
        spans.append(((part.start, part.end), (len(text), len(text) + len(part.text))))
        text, end = text + part.text, part.end
    return GentleNegative(text + reading.text[end:], edit.kind, tuple(spans))


# "not riding a bike" stays true with anybody in the rider's place, so these deny the whole clause
_DENY_CLAUSE = frozenset({"not", "never", "cannot", "nobody", "nothing", "none", "neither", "nor", "hardly", "barely"})
_DENY_REST = frozenset({"no", "without", "lacking", "lacks", "except", "excluding", "unlike", "minus", "absent"})
_DENY_REST_IN_TWO = frozenset({("rather", "than"), ("instead", "of"), ("other", "than"), ("free", "of")})
_ALTERNATIVES = frozenset({"or", "and/or", "either", "neither", "nor", "whether"})
_NEGATED_VERB = re.compile(r"n['\u2019]t$|^(?:isnt|arent|wasnt|werent|doesnt|dont|didnt|cant|wont|hasnt|havent)$")
_CLAUSE_END, _SENTENCE_MARK = re.compile(r"[.!?;:\n()]"), re.compile(r"[.!?\n]")
_CLAUSE_START = re.compile(r"[,.!?;:\n()]")
_TURNS_BACK = frozenset({"but"})
_OPENS_CLAUSE = frozenset({"but", "while", "which", "who", "that", "where", "because", "since"})


def outside_scopes(edits: Iterator[Edit], reading: Reading) -> Iterator[Edit]:
    """The edits that touch nothing denied and no alternative.

    "There is no dog" would stay right with a rabbit in the dog's place, and so would "a dog or a cat".
    """
    fixed = [reading.tokens[index] for index in _fixed(reading)]
    for edit in edits:
        if not any(part.start < token.end and token.start < part.end for part in edit.parts for token in fixed):
            yield edit


def _fixed(reading: Reading) -> set[int]:
    """Tokens that must stay as they are."""
    found: set[int] = set()
    for index, token in enumerate(reading.tokens):
        following = reading.tokens[index + 1].lower if index + 1 < len(reading.tokens) else ""
        if token.lower in _ALTERNATIVES:
            found.update(_until(index, 1, reading, _SENTENCE_MARK), _until(index, -1, reading, _SENTENCE_MARK))
        if token.lower in _DENY_CLAUSE or _NEGATED_VERB.search(token.lower):
            found.update(_until(index, -1, reading, _CLAUSE_START, _OPENS_CLAUSE))
            found.update(_until(index, 1, reading, _CLAUSE_END, _TURNS_BACK))
        elif token.lower == "no" and "," in _gap(index, reading):
            continue  # "No, it is red." denies nothing of what follows
        elif token.lower in _DENY_REST or (token.lower, following) in _DENY_REST_IN_TWO:
            found.update(_until(index, 1, reading, _CLAUSE_END, _TURNS_BACK))
    return found


def _until(
    index: int, step: int, reading: Reading, edge: re.Pattern[str], words: frozenset[str] = frozenset()
) -> Iterator[int]:
    """The tokens on one side of a token, up to an edge between two of them or a word that begins something new."""
    here = index + step
    while 0 <= here < len(reading.tokens):
        if edge.search(_gap(min(here - step, here), reading)) or reading.tokens[here].lower in words:
            return
        yield here
        here += step


def _gap(left: int, reading: Reading) -> str:
    """What stands between a token and the next."""
    end = reading.tokens[left + 1].start if left + 1 < len(reading.tokens) else len(reading.text)
    return reading.text[reading.tokens[left].end : end]


_ARTICLE = re.compile(r"(?<![\w'\u2019.-])(an?)(?=\s+$)", re.IGNORECASE)


def _with_article(part: Part, reading: Reading) -> Part:
    """The part, with the ``a`` or ``an`` before it where that must change."""
    found, loud = _ARTICLE.search(reading.text[: part.start]), reading.shape == "upper"
    if found is None or not part.text:
        return part
    new = indefinite_article(part.text.lower() if loud else part.text)
    if new == found[1].lower():
        return part
    new = new.upper() if loud else new.capitalize() if found[1][0].isupper() else new
    return Part(found.start(1), part.end, new + reading.text[found.end(1) : part.start] + part.text)
