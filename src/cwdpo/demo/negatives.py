"""Wrong captions of two kinds: gentle (one attribute of one thing) and easy (nothing to do with the picture)."""

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np

from cwdpo.demo.captions import Style, parse_caption, sample_style, write_caption
from cwdpo.demo.checker import check_caption
from cwdpo.demo.scenes import COLOURS, POSITIONS, SHAPES, SIZES, Scene, sample_scene

Kind: TypeAlias = Literal["gentle", "other_scene", "shuffled", "off_topic"]
"""What sort of negative a rejected caption is."""

EASY_KINDS: tuple[Kind, ...] = ("other_scene", "shuffled", "off_topic")

_NEAR_COLOUR = 0.8  # share of colour changes that go to a neighbour on the colour wheel
_WHO = ("my neighbour", "our teacher", "an old sailor", "that orchestra", "somebody", "her cousin")
_DOES = ("cooks soup", "reads newspapers", "repairs bicycles", "practises chess", "waters tomatoes", "plays music")
_WHEN = ("on sundays", "before breakfast", "during winter", "every evening", "in autumn", "after work")


def gentle_negative(scene: Scene, style: Style, rng: np.random.Generator) -> str:
    """The scene's caption in the same style with one attribute of one thing changed."""
    index = int(rng.integers(len(scene)))
    changed = list(scene)
    changed[index] = replace(scene[index], **_changed_attribute(scene, index, rng))
    return write_caption(tuple(changed), style)


def easy_negative(kind: Kind, scene: Scene, caption: str, rng: np.random.Generator) -> str:
    """A caption that is wrong at first sight.

    Args:
        kind: one of :data:`EASY_KINDS`.
        scene: what the picture shows.
        caption: a right caption; its words are what ``shuffled`` shuffles.
        rng: source of all randomness.
    """
    if kind == "off_topic":
        return off_topic_sentence(rng)
    if kind == "shuffled":
        return _shuffled(caption, rng)
    if kind != "other_scene":
        raise ValueError(f"{kind!r} is no easy negative; write one of {', '.join(EASY_KINDS)}")
    while True:
        other = sample_scene(rng)
        candidate = write_caption(other, sample_style(other, rng))
        if not check_caption(candidate, scene).exact:
            return candidate


def off_topic_sentence(rng: np.random.Generator) -> str:
    """A sentence about something else."""
    return " ".join(str(rng.choice(part)) for part in (_WHO, _DOES, _WHEN))


def off_topic_words() -> list[str]:
    """Every word of the off-topic sentences, sorted."""
    return sorted({word for part in (_WHO, _DOES, _WHEN) for phrase in part for word in phrase.split()})


def _shuffled(caption: str, rng: np.random.Generator) -> str:
    words = caption.split()
    while True:
        mixed = " ".join(str(word) for word in rng.permutation(words))
        if parse_caption(mixed) is None:
            return mixed


def _changed_attribute(scene: Scene, index: int, rng: np.random.Generator) -> dict[str, Any]:
    thing = scene[index]
    attribute = str(rng.choice(["colour", "shape", "size", "position"], p=[0.4, 0.2, 0.2, 0.2]))
    if attribute == "colour" and rng.random() < _NEAR_COLOUR:
        step = int(rng.choice([-1, 1]))
        return {"colour": COLOURS[(COLOURS.index(thing.colour) + step) % len(COLOURS)]}
    taken = {other.position for other in scene} if attribute == "position" else {getattr(thing, attribute)}
    values = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "position": POSITIONS}[attribute]
    free = [value for value in values if value not in taken]
    return {attribute: free[int(rng.integers(len(free)))]}
