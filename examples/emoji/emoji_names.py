"""What an emoji's name says, attribute by attribute, so that names which differ in one attribute can be found.

A name is read into a frame and the values of its attributes: ``woman firefighter: dark skin tone`` has the frame
``people firefighter`` and the values who = woman, tone = dark. Two names with the same frame and exactly one other
value are a minimal pair, and each is the other's gentle negative.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_WHO = {
    "woman": "woman",
    "man": "man",
    "person": "person",
    "women": "woman",
    "men": "man",
    "people": "person",
    "girl": "woman",
    "boy": "man",
    "child": "person",
}
HAIR = ("red hair", "curly hair", "white hair", "blond hair", "bald", "beard")
_TWO_PEOPLE = re.compile(r"(kiss|couple with heart|handshake|(people|women|men|woman and man) holding hands)\b")
_WORDS = {
    "colour": "red orange yellow green blue purple brown black white grey pink",
    "size": "small medium-small medium large",
    "direction": "left right up down up-left up-right down-left down-right leftwards rightwards",
    "hour": "one two three four five six seven eight nine ten eleven twelve",
    "phase": "waxing waning first last",
}
_CLASS = {word: name for name, words in _WORDS.items() for word in words.split()}


@dataclass(frozen=True, slots=True)
class Reading:
    """A name taken apart."""

    frame: str
    """What is left when the attributes' values are taken out."""

    values: tuple[tuple[str, str], ...]
    """``(attribute, value)`` in the order of the name; an attribute may stand there twice (two people, two tones)."""

    def get(self, attribute: str) -> tuple[str, ...]:
        """Every value that this attribute has in the name."""
        return tuple(value for name, value in self.values if name == attribute)


def read_name(name: str, group: str = "") -> Reading:
    """Take a name apart.

    Args:
        name: the English CLDR name.
        group: the ``group/subgroup`` of emoji-test.txt; without it the name itself decides what kind it is.
    """
    if _is_people(name, group):
        return _read_people(name)
    if "/face-" in group or "/cat-face" in group:
        return _read_face(name)
    if group.startswith("Flags"):
        return Reading(name, ())
    words = re.split("([ -])" if group.endswith("/time") else "( )", name)
    values = tuple((_CLASS[word], word) for word in words if word in _CLASS)
    return Reading("".join(f"<{_CLASS[word]}>" if word in _CLASS else word for word in words), values)


def difference(one: Reading, other: Reading) -> str | None:
    """The attribute in which two names differ, if they have one frame and differ in exactly one value."""
    if one.frame != other.frame or len(one.values) != len(other.values):
        return None
    unlike = [mine[0] for mine, theirs in zip(one.values, other.values, strict=True) if mine != theirs]
    return unlike[0] if len(unlike) == 1 else None


def minimal_pairs(readings: dict[str, Reading]) -> dict[str, dict[str, str]]:
    """For each name, the names that differ from it in one attribute, each with that attribute.

    Args:
        readings: from name to its reading.
    """
    families = defaultdict(list)
    for name, reading in readings.items():
        families[reading.frame].append(name)
    pairs: dict[str, dict[str, str]] = {name: {} for name in readings}
    for members in families.values():
        for name in members:
            for other in members:
                attribute = difference(readings[name], readings[other])
                if attribute:
                    pairs[name][other] = attribute
    return pairs


def judge(answers: Sequence[str], names: Sequence[str]) -> dict[str, list[bool]]:
    """For each answer: is the whole name right (``exact``), are its tones (``tone``) and its people (``who``)?

    Args:
        answers: what a model said.
        names: what the pictures show.
    """
    found: dict[str, list[bool]] = {"exact": [], "tone": [], "who": []}
    for answer, name in zip(answers, names, strict=True):
        said, true = (read_name(text, "People & Body") for text in (answer, name))
        found["exact"].append(answer == name)
        found["tone"].append(said.get("tone") == true.get("tone"))
        found["who"].append(said.get("who") == true.get("who"))
    return found


ATTRIBUTES = ("who", "tone", "hair")
"""Of people, in the order in which a reading has them."""


def share_right(answer: str, name: str) -> float:
    """Share of the frame and the :data:`ATTRIBUTES` that an answer has right, from 0 to 1, as a rater may score it. An
    attribute that is made up is a wrong one.

    Example:
        >>> share_right("woman judge: dark skin tone, red hair", "woman judge: dark skin tone")
        0.75
    """
    said, true = (read_name(text, "People & Body") for text in (answer, name))
    right = [said.frame == true.frame, *(said.get(each) == true.get(each) for each in ATTRIBUTES)]
    return sum(right) / len(right)


def made_up(answer: str, name: str) -> list[str]:
    """The attributes, ``tone`` or ``hair``, of which an answer names a value where the picture's name has none. Another
    value than the name's is wrong, but not made up.

    Example:
        >>> made_up("judge: dark skin tone, red hair", "judge: light skin tone")
        ['hair']
    """
    said, true = (read_name(text, "People & Body") for text in (answer, name))
    named = [{each for each in ("tone", "hair") if {*reading.get(each)} - {"default"}} for reading in (said, true)]
    return [each for each in ("tone", "hair") if each in named[0] - named[1]]


def put_right(answer: str, name: str, attribute: str) -> Reading:
    """The reading of an answer with one attribute, or the ``frame``, as it is in the picture's name."""
    said, true = (read_name(text, "People & Body") for text in (answer, name))
    frame = (true if attribute == "frame" else said).frame
    kept = {each: (true if each == attribute else said) for each in ATTRIBUTES}
    return Reading(frame, tuple((each, value) for each in ATTRIBUTES for value in kept[each].get(each)))


def _is_people(name: str, group: str) -> bool:
    if group:
        return group.startswith("People & Body")
    return "skin tone" in name or any(word in _WHO for word in re.split(r"[ :,]+", name))


def _read_people(name: str) -> Reading:
    head, _, rest = name.partition(": ")
    parts = rest.split(", ") if rest else []
    tones = [part.removesuffix(" skin tone") for part in parts if part.endswith(" skin tone")]
    others = [part for part in parts if not part.endswith(" skin tone")]
    two = _TWO_PEOPLE.match(head) is not None
    if head in ("kiss", "couple with heart") and not others:
        others = ["person", "person"]  # named only in the two-tone sequences, but it is who the picture shows
    who, frame = _who_of_head(head)
    who += [("who", _WHO[part]) for part in others if part in _WHO]
    hair = [("hair", part) for part in others if part in HAIR]
    if frame == "people " and not hair:
        hair = [("hair", "default")]
    kept = ["child" if part in ("boy", "girl") else "adult" for part in others if part in _WHO]
    kept += [part for part in others if part not in _WHO and part not in HAIR]
    return Reading("/".join([frame, *kept]), tuple(who + _tone_values(tones, two) + hair))


def _tone_values(tones: list[str], two: bool) -> list[tuple[str, str]]:
    tones = tones or ["default"]
    if two and len(tones) == 1:
        tones = tones * 2  # one tone is said of both
    return [("tone", tone) for tone in tones]


def _who_of_head(head: str) -> tuple[list[tuple[str, str]], str]:
    """The first word for a person in a head, and the head without it; a role alone (``firefighter``) is of a person."""
    if _TWO_PEOPLE.match(head) or head == "family":
        words = re.findall(r"\b(?:people|women|men|woman and man)\b", head)
        return [("who", words[0])] if words else [], re.sub(r"people|women|men|woman and man", "two", head)
    words = head.split(" ")
    for position, word in enumerate(words):
        if word in _WHO and word not in ("girl", "boy", "child"):
            return [("who", _WHO[word])], "people " + " ".join(words[:position] + words[position + 1 :])
    if head in ("girl", "boy", "child"):
        return [("who", _WHO[head])], "child"
    return [("who", "person")], "people " + head


def _read_face(name: str) -> Reading:
    """``grinning face with big eyes``: what the face does, and what it is shown with."""
    head, _, extra = name.partition(" with ")
    doing, _, noun = head.rpartition(" ")
    if noun not in ("face", "cat", "monkey", "eyes"):
        return Reading(name, ())
    return Reading(f"<expression> {noun}", (("expression", doing), ("with", extra)))
