"""A small caption grammar, both ways: scenes to sentences, sentences back to scenes.

    caption := phrase | phrase "and" phrase
    phrase  := "a" size colour shape "at the" position | "at the" position "there is a" size colour shape

Every word has synonyms and the phrases come in any order, so that a scene has many right captions.
"""

import re
from dataclasses import dataclass, fields
from typing import cast

import numpy as np

from cwdpo.demo.scenes import Colour, Position, Scene, Shape, Size, Thing

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "cyan": ("cyan", "turquoise"),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
    },
    "shape": {
        "disc": ("disc", "circle"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "diamond": ("diamond", "rhombus"),
        "cross": ("cross", "plus"),
    },
    "size": {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")},
    "position": {
        "top left": ("top left", "upper left"),
        "top right": ("top right", "upper right"),
        "bottom left": ("bottom left", "lower left"),
        "bottom right": ("bottom right", "lower right"),
    },
}
"""For each attribute, the words that may stand for each of its values."""

_VALUE_OF = {
    attribute: {word: value for value, words in values.items() for word in words}
    for attribute, values in SYNONYMS.items()
}
_SIZE, _COLOUR, _SHAPE, _POSITION = (
    "(?P<{}>{})".format(attribute, "|".join(_VALUE_OF[attribute]))
    for attribute in ("size", "colour", "shape", "position")
)
_PHRASES = tuple(
    re.compile(pattern)
    for pattern in (
        f"a {_SIZE} {_COLOUR} {_SHAPE} at the {_POSITION}",
        f"at the {_POSITION} there is a {_SIZE} {_COLOUR} {_SHAPE}",
    )
)


@dataclass(frozen=True, slots=True)
class PhraseStyle:
    """How one thing is put into words: a number in [0, 1) picks among the synonyms of each attribute's value."""

    colour: float
    shape: float
    size: float
    position: float
    place_first: bool
    """Begin with "at the ...", rather than end with it."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a scene is put into words. The same style on a changed scene changes only the words that must change."""

    phrases: tuple[PhraseStyle, ...]
    """One for each thing of the scene."""

    order: tuple[int, ...]
    """The things, in the order in which they are named."""


def sample_style(scene: Scene, rng: np.random.Generator) -> Style:
    """Choose synonyms, phrase forms and order at random."""
    phrases = tuple(_sample_phrase(rng) for _ in scene)
    return Style(phrases=phrases, order=tuple(int(index) for index in rng.permutation(len(scene))))


def write_caption(scene: Scene, style: Style) -> str:
    """Put a scene into words.

    Example:
        >>> plain = PhraseStyle(colour=0, shape=0, size=0, position=0, place_first=False)
        >>> write_caption((Thing("red", "disc", "small", "top left"),), Style(phrases=(plain,), order=(0,)))
        'a small red disc at the top left'
    """
    return " and ".join(_phrase(scene[index], style.phrases[index]) for index in style.order)


def parse_caption(caption: str) -> Scene | None:
    """Read a caption back.

    Returns:
        The things in the order named (any number of them), or None when the text is not in the grammar.

    Example:
        >>> parse_caption("at the upper left there is a tiny red circle")
        (Thing(colour='red', shape='disc', size='small', position='top left'),)
        >>> parse_caption("disc red a") is None
        True
    """
    things = []
    for phrase in " ".join(caption.lower().split()).rstrip(".").split(" and "):
        found = next(filter(None, (pattern.fullmatch(phrase) for pattern in _PHRASES)), None)
        if found is None:
            return None
        value = {attribute: _VALUE_OF[attribute][word] for attribute, word in found.groupdict().items()}
        things.append(
            Thing(
                colour=cast(Colour, value["colour"]),
                shape=cast(Shape, value["shape"]),
                size=cast(Size, value["size"]),
                position=cast(Position, value["position"]),
            )
        )
    return tuple(things)


def grammar_words() -> list[str]:
    """Every word a caption may hold, sorted."""
    words = {"a", "and", "at", "the", "there", "is"}
    for values in SYNONYMS.values():
        words.update(word for synonyms in values.values() for synonym in synonyms for word in synonym.split())
    return sorted(words)


def _sample_phrase(rng: np.random.Generator) -> PhraseStyle:
    colour, shape, size, position, form = (float(pick) for pick in rng.random(5))
    return PhraseStyle(colour=colour, shape=shape, size=size, position=position, place_first=form < 0.5)


def _phrase(thing: Thing, style: PhraseStyle) -> str:
    word = {}
    for attribute in (f.name for f in fields(thing)):
        synonyms = SYNONYMS[attribute][getattr(thing, attribute)]
        word[attribute] = synonyms[int(getattr(style, attribute) * len(synonyms))]
    named, place = f"a {word['size']} {word['colour']} {word['shape']}", f"at the {word['position']}"
    return f"{place} there is {named}" if style.place_first else f"{named} {place}"
