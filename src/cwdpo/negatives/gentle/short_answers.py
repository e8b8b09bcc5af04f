"""Edits of short answers: yes and no, true and false, and the letters of multiple choice."""

import re
from collections.abc import Iterator

from cwdpo.negatives.gentle.edits import Edit, Part, Reading
from cwdpo.negatives.gentle.lexicon import cased_like

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
    clause = _CLAUSE.match(reading.text)
    if bare:
        yield Edit("yes_no", (_opposite(bare),))
    elif clause and not _SECOND_CLAUSE.search(clause[3]):
        second = _denied(clause) if clause[1].lower() == "yes" else _asserted(clause)
        if second is not None:  # the answer's first word and its verb change together, so that they agree
            yield Edit("yes_no", (_opposite(clause), second))


def choices(reading: Reading, prompt: str) -> Iterator[Edit]:
    """Another letter of the prompt's options; without options in the prompt, another of A to D."""
    options = {letter.upper(): text.strip() for letter, text in _OPTION.findall(prompt)}
    found = _LETTER.fullmatch(reading.text)
    if found and reading.text.strip() not in ("a", "i"):
        letter = found[1]
        for other in sorted(options) if letter.upper() in options else ["A", "B", "C", "D"]:
            if other != letter.upper():
                yield Edit("choice", (Part(*found.span(1), other if letter.isupper() else other.lower()),))
        return
    full = _WITH_TEXT.fullmatch(reading.text)
    if full and full[1].upper() in options and _same(options[full[1].upper()], full[2]):
        for other, text in sorted(options.items()):
            if other != full[1].upper() and not _same(text, full[2]):
                letter = other if full[1].isupper() else other.lower()
                yield Edit("choice", (Part(*full.span(1), letter), Part(*full.span(2), text)))


def _opposite(answer: re.Match[str]) -> Part:
    """The first group, a yes or a no, as its opposite."""
    return Part(*answer.span(1), cased_like(answer[1], _OPPOSITE[answer[1].lower()]))


def _denied(clause: re.Match[str]) -> Part | None:
    """ "is" becomes "is not", "can" becomes "cannot", and "has a hat" becomes "does not have a hat"."""
    verb = _POSITIVE.search(clause[3])
    if verb is None or _ANY_NEGATION.search(clause[3]) or re.search(r"\bsome\b", clause[3], re.IGNORECASE):
        return None
    start, end = clause.start(3) + verb.start(), clause.start(3) + verb.end()
    word, rest = verb[0].lower(), clause[3][verb.end() :]
    if word in _HAS and not _PARTICIPLE.match(rest):
        if not _OBJECT.match(rest) or verb.start() == 0:
            return None
        text = f"{_HAS[word]} not have"
    else:
        start, text = end, "not" if word == "can" else " not"
    return Part(start, end, text.upper() if clause[3].isupper() else text)


def _asserted(clause: re.Match[str]) -> Part | None:
    """The negation is left out: "is not" becomes "is", and "there is no dog" becomes "there is a dog"."""
    negated = _NEGATED.search(clause[3])
    if negated is None or len(_ANY_NEGATION.findall(clause[3])) != 1:
        return None
    if re.search(r"\b(?:won|can)['\u2019]t\b", clause[3], re.IGNORECASE):
        return None
    group = next(number for number in (1, 2, 3) if negated[number])
    if re.search(r"\b(?:any|a|an)\b" if group == 3 else r"\bany\b", clause[3]):
        return None
    text = ""
    if group == 3 and negated[0].lower().split()[1] in ("is", "was"):
        rest = clause[3][negated.end() :].lstrip()
        text = " an" if rest[:1].lower() in tuple("aeiou") else " a"
    return Part(clause.start(3) + negated.start(group), clause.start(3) + negated.end(group), text)


def _same(one: str, other: str) -> bool:
    return one.strip(" .").casefold() == other.strip(" .").casefold()
