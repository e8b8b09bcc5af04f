"""Where an answer does not say what is there: after a negation, and on both sides of "or". No edit belongs there."""

import re
from collections.abc import Iterator

from cwdpo.negatives.edits import Edit
from cwdpo.negatives.reading_text import Reading

# "not riding a bike" stays true of whoever is put in the rider's place, so these deny the whole clause
_DENY_CLAUSE = frozenset({"not", "never", "cannot", "nobody", "nothing", "none", "neither", "nor", "hardly", "barely"})
_DENY_REST = frozenset({"no", "without", "lacking", "lacks", "except", "excluding", "unlike", "minus", "absent"})
_DENY_REST_IN_TWO = frozenset({("rather", "than"), ("instead", "of"), ("other", "than"), ("free", "of")})
_ALTERNATIVES = frozenset({"or", "and/or", "either", "neither", "nor", "whether"})
_NEGATED_VERB = re.compile(r"n['\u2019]t$|^(?:isnt|arent|wasnt|werent|doesnt|dont|didnt|cant|wont|hasnt|havent)$")
_CLAUSE_END, _SENTENCE_END = re.compile(r"[.!?;:\n()]"), re.compile(r"[.!?\n]")
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
            found.update(_until(index, 1, reading, _SENTENCE_END), _until(index, -1, reading, _SENTENCE_END))
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
