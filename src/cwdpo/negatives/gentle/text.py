"""A text as the lexicon sees it: words, phrases, their neighbours and their readings."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from cwdpo.negatives.gentle.lexicon import KINDS, Conditions, Lexicon, Sense, indefinite_article

NUMBER_WORDS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
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
        here = self.neighbour(index, step)
        while here is not None and len(found) < reach:
            found.append(here)
            here = self.neighbour(here, step)
        return found

    def starts_sentence(self, start: int) -> bool:
        """Whether a sentence begins at this character."""
        before = self.text[:start]
        return _SENTENCE_END.search(before) is not None and _ABBREVIATION.search(before) is None

    def is_noun(self, index: int | None) -> bool:
        """Whether a token belongs to a thing that the lexicon knows."""
        return index in self.at and any(sense.is_noun for sense in self.at[index].senses)

    def is_animate(self, index: int | None) -> bool:
        """Whether a token belongs to a person or an animal that the lexicon knows."""
        return index in self.at and any(sense.group.animate for sense in self.at[index].senses)

    def is_plural(self, index: int | None) -> bool:
        """Whether a token belongs to a plural noun."""
        return index in self.at and any(sense.form == "plural" for sense in self.at[index].senses)

    def is_content(self, index: int) -> bool:
        """Whether a token is a word with a meaning of its own."""
        lower = self.tokens[index].lower
        return lower[0].isalpha() and lower not in self.lexicon.classes.get("function", frozenset())

    def is_number(self, index: int) -> bool:
        """Whether a token is a number in digits or a small one in words."""
        lower = self.tokens[index].lower
        return lower[0].isdigit() or lower in NUMBER_WORDS

    def in_class(self, index: int | None, name: str) -> bool:
        """Whether a token is in one of the lexicon's classes."""
        return index is not None and self.tokens[index].lower in self.lexicon.classes.get(name, frozenset())

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
        known = {"noun": self.is_noun, "content": self.is_content, "number": self.is_number, "animate": self.is_animate}
        if name in known:
            return known[name](index)
        if name in KINDS:
            return index in self.at and any(sense.group.kind == name for sense in self.at[index].senses)
        return self.in_class(index, name)

    def allows(self, conditions: Conditions, phrase: Phrase) -> bool:
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
        index = 0
        while index < len(self.tokens):
            found = self._longest_at(index)
            if found is not None:
                yield found
            index = found.last if found else index + 1

    def _longest_at(self, first: int) -> Phrase | None:
        last, best = first, None
        words, exact = "", ""
        while last < len(self.tokens) and last - first < self.lexicon.longest:
            if last > first:
                if self.text[self.tokens[last - 1].end : self.tokens[last].start] != " ":
                    break
                words, exact = words + " ", exact + " "
            words, exact = words + self.tokens[last].lower, exact + self.tokens[last].text
            last += 1
            senses = self.lexicon.senses.get(exact, ()) or self.lexicon.senses.get(words, ())
            kept, relation = words in self.lexicon.keep, words in self.lexicon.asymmetric
            if senses or kept or relation:
                best = Phrase(first, last, () if kept else senses, kept, relation)
        return best


_ARTICLE = re.compile(r"(?<![\w'\u2019.-])(an?)(?=\s+$)", re.IGNORECASE)


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
class Applied:
    """An edited text, with what was replaced and what replaced it."""

    text: str
    parts: tuple[tuple[Span, Span], ...]
    """Of each part, the characters of the original and those of the edited text."""


def apply(edit: Edit, reading: Reading) -> Applied:
    """Put an edit into its text; an article before a changed word is changed with it where its sound asks for it."""
    original = reading.text
    parts = [_with_article(part, reading) for part in edit.parts]
    text, end = "", 0
    spans = []
    for part in parts:
        text += original[end : part.start]
        spans.append(((part.start, part.end), (len(text), len(text) + len(part.text))))
        text, end = text + part.text, part.end
    return Applied(text + original[end:], tuple(spans))


def _with_article(part: Part, reading: Reading) -> Part:
    """The part, with the ``a`` or ``an`` before it where that must change."""
    found = _ARTICLE.search(reading.text[: part.start])
    if found is None or not part.text:
        return part
    old = found.group(1)
    word = part.text.lower() if reading.shape == "upper" else part.text
    new = indefinite_article(word)
    if new == old.lower():
        return part
    between = reading.text[found.end(1) : part.start]
    if reading.shape == "upper":
        new = new.upper()
    elif old[0].isupper():
        new = new.capitalize()
    return Part(found.start(1), part.end, new + between + part.text)


# "not riding a bike" stays true of whoever is put in the rider's place, so these deny the whole clause
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
    fixed = [(reading.tokens[index].start, reading.tokens[index].end) for index in sorted(_fixed(reading))]
    for edit in edits:
        if not any(part.start < end and start < part.end for part in edit.parts for start, end in fixed):
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
