"""Edits of short answers: yes and no, true and false, and the letters of multiple choice."""

import re
from collections.abc import Iterator

from cwdpo.negatives.gentle.lexicon import cased_like
from cwdpo.negatives.gentle.text import Edit, Part, Reading

_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_BARE = re.compile(r"\s*[\"'(]?(yes|no|true|false)[\"')]?[.!]?\s*", re.IGNORECASE)
_CLAUSE = re.compile(r"(yes|no)(,\s+)([^.!?;\n]+)([.!]?)\s*$", re.IGNORECASE)
_AUXILIARY = r"(?:is|are|was|were|can|could|will|would|has|have|does|do|did|should)"
_NEGATED = re.compile(
    rf"\b{_AUXILIARY}( not\b|n['\u2019]t\b)|\bcan(not)\b|\bthere (?:is|are|was|were)( no)\b", re.IGNORECASE
)
_ANY_NEGATION = re.compile(
    r"\b(?:no|not|never|none|nothing|nobody|neither|nor|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE
)
_POSITIVE = re.compile(rf"\b{_AUXILIARY}\b", re.IGNORECASE)
_SECOND_CLAUSE = re.compile(r"\b(?:but|because|since|although|so|that|which|who|if|and)\b|,", re.IGNORECASE)
_HAS = {"has": "does", "have": "do"}
_PARTICIPLE = re.compile(
    r"\s+(?:just\s+|already\s+)?(?:been|\w+ed|\w+en|gone|had|sat|lost|left|made|put|got)\b", re.IGNORECASE
)
_OBJECT = re.compile(r"\s+(?:an?|the|one|two|three|four|five|six|his|her|its|their|my|our|your|\w+s)\b", re.IGNORECASE)
_LETTER = re.compile(
    r"\s*(?:(?:the\s+)?(?:correct\s+|right\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?"
    r"[(\[]?([A-H]|[a-h](?=[).]))[)\].:]?\s*",
    re.IGNORECASE,
)
_WITH_TEXT = re.compile(r"\s*\(?([A-Ha-h])[).:]\s+(\S.*?)\s*", re.DOTALL)
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-Ha-h])[).:]\s*(\S.*?)(?=\s+\(?[A-Ha-h][).:]\s*\S|\s*\n|\s*$)", re.MULTILINE)


def yes_no(reading: Reading) -> Iterator[Edit]:
    """ "Yes." becomes "No."; "Yes, there is a dog." becomes "No, there is not a dog."."""
    bare = _BARE.fullmatch(reading.text)
    if bare:
        word = bare[1]
        yield Edit("yes_no", (Part(*bare.span(1), cased_like(word, _OPPOSITE[word.lower()])),))
        return
    clause = _CLAUSE.match(reading.text)
    if clause and not _SECOND_CLAUSE.search(clause[3]):
        yield from _turned_clause(clause)


def _turned_clause(clause: re.Match[str]) -> Iterator[Edit]:
    """The answer's first word and its verb change together, so that they go on agreeing."""
    word, offset = clause[1], clause.start(3)
    first = Part(*clause.span(1), cased_like(word, _OPPOSITE[word.lower()]))
    negations = _ANY_NEGATION.findall(clause[3])
    if word.lower() == "yes" and not negations:
        verb = _POSITIVE.search(clause[3])
        if verb and not re.search(r"\bsome\b", clause[3], re.IGNORECASE):
            yield from _denied(first, verb, clause)
    elif word.lower() == "no" and len(negations) == 1:
        negated = _NEGATED.search(clause[3])
        if negated and not re.search(r"\b(?:won|can)['\u2019]t\b", clause[3], re.IGNORECASE):
            group = next(number for number in (1, 2, 3) if negated[number])
            if group == 3 and not re.search(r"\b(?:any|a|an)\b", clause[3]):
                yield Edit(
                    "yes_no", (first, Part(offset + negated.start(3), offset + negated.end(3), _some(negated, clause)))
                )
            elif group != 3 and not re.search(r"\bany\b", clause[3]):
                yield Edit("yes_no", (first, Part(offset + negated.start(group), offset + negated.end(group), "")))


def _denied(first: Part, verb: re.Match[str], clause: re.Match[str]) -> Iterator[Edit]:
    """ "is" becomes "is not", "can" becomes "cannot", and "has a hat" becomes "does not have a hat"."""
    start, end = clause.start(3) + verb.start(), clause.start(3) + verb.end()
    loud = clause[3].isupper()
    word, rest = verb[0].lower(), clause[3][verb.end() :]
    if word in _HAS and not _PARTICIPLE.match(rest):
        if not _OBJECT.match(rest) or verb.start() == 0:
            return
        text = f"{_HAS[word]} not have"
        yield Edit("yes_no", (first, Part(start, end, text.upper() if loud else text)))
    else:
        text = "not" if word == "can" else " not"
        yield Edit("yes_no", (first, Part(end, end, text.upper() if loud else text)))


def _some(negated: re.Match[str], clause: re.Match[str]) -> str:
    """What stands for "no" when there is one: "there is no dog" becomes "there is a dog"."""
    singular = negated[0].lower().split()[1] in ("is", "was")
    rest = clause[3][negated.end() :].lstrip()
    if not singular:
        return ""
    return " an" if rest[:1].lower() in tuple("aeiou") else " a"


def choices(reading: Reading, prompt: str) -> Iterator[Edit]:
    """Another letter of the prompt's options; without options in the prompt, another of A to D."""
    options = {letter.upper(): text.strip() for letter, text in _OPTION.findall(prompt)}
    found = _LETTER.fullmatch(reading.text)
    if found and reading.text.strip() not in ("a", "i"):
        letter = found[1]
        known = sorted(options) if letter.upper() in options else ["A", "B", "C", "D"]
        for other in known:
            if other != letter.upper():
                yield Edit("choice", (Part(*found.span(1), other if letter.isupper() else other.lower()),))
        return
    told = _WITH_TEXT.fullmatch(reading.text)
    if told and told[1].upper() in options and _same(options[told[1].upper()], told[2]):
        for other, text in sorted(options.items()):
            if other != told[1].upper() and not _same(text, told[2]):
                letter = other if told[1].isupper() else other.lower()
                yield Edit("choice", (Part(*told.span(1), letter), Part(*told.span(2), text)))


def _same(one: str, other: str) -> bool:
    return one.strip(" .").casefold() == other.strip(" .").casefold()
