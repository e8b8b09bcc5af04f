"""The demo's world: drawn scenes, captions of them right and wrong, and files of both as a user's own data would be.

A small grammar, read in both directions, from scenes to captions and back:

    caption := phrase | phrase "and" phrase
    phrase  := "a" size colour shape "at the" position | "at the" position "there is a" size colour shape

Every word has synonyms and the phrases come in any order, so that a scene has many right captions.
"""

import colorsys
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageDraw

Colour: TypeAlias = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Shape: TypeAlias = Literal["disc", "square", "triangle", "diamond", "cross"]
Size: TypeAlias = Literal["small", "large"]
Position: TypeAlias = Literal["top left", "top right", "bottom left", "bottom right"]

Kind: TypeAlias = Literal["gentle", "other_scene", "shuffled", "off_topic"]
"""The kind of negative that a rejected caption is."""

COLOURS: tuple[Colour, ...] = get_args(Colour)
"""In the order of the colour wheel, so that neighbours in the tuple (cyclically) look alike."""

SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
POSITIONS: tuple[Position, ...] = get_args(Position)
EASY_KINDS: tuple[Kind, ...] = ("other_scene", "shuffled", "off_topic")

SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        **{colour: (colour,) for colour in COLOURS},
        "cyan": ("cyan", "turquoise"),
        "purple": ("purple", "violet"),
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

PROMPT = "describe the picture"
IMAGE_SIZE = 32
"""Side of a picture in pixels."""

EASY_SHARE = 0.7
"""Share of rejected captions that are easy: the situation in which plain DPO goes wrong."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: four attributes, each with a small set of values."""

    colour: Colour
    shape: Shape
    size: Size
    position: Position


Scene: TypeAlias = tuple[Thing, ...]
"""One or two things at different positions."""


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
    order: tuple[int, ...]
    """The things, in the order in which they are named; the phrases are in the scene's own."""


class Verdict(NamedTuple):
    """The checker's verdict on one caption."""

    exact: bool
    """Every thing named once, with all four attributes right, and nothing else."""

    attributes: float
    """Share of right attributes under the best matching of things, from 0 to 1; missing and extra things count."""

    hallucinated: bool
    """Names a thing whose colour and shape are not in the picture, or is not a caption at all."""


class WorldPaths(NamedTuple):
    """Where the world lies: the rows to train on, those held out, and the directory of the PNG files."""

    train: Path
    eval: Path
    scenes: Path
    """Ground truth: a JSON object from row id to the list of things in the picture."""

    images: Path


def write_world(directory: Path, *, seed: int, train: int, eval: int) -> WorldPaths:
    """Draw pictures, write captions and negatives, and put all of it on disk; files of the same name are replaced.

    Everything random follows from the seed; the two splits are drawn independently of each other's size.
    """
    paths = WorldPaths(*(directory / name for name in ("train.jsonl", "eval.jsonl", "scenes.json", "images")))
    paths.images.mkdir(parents=True, exist_ok=True)
    truth: dict[str, list[dict[str, str]]] = {}
    for split, (path, count) in enumerate(((paths.train, train), (paths.eval, eval))):
        rng = np.random.default_rng([seed, split])
        rows = []
        for number in range(count):
            scene = sample_scene(rng)
            row = make_row(f"{path.stem}-{number:05d}", scene, rng)
            draw_scene(scene, rng).save(directory / row["images"][0], compress_level=1)
            truth[row["id"]] = [asdict(thing) for thing in scene]
            rows.append(row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths.scenes.write_text(json.dumps(truth), encoding="utf-8")
    return paths


def make_row(row_id: str, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    """One preference row: a right caption, a rejected one that is mostly easy, and a gentle one."""
    style = sample_style(scene, rng)
    chosen = write_caption(scene, style)
    kind: Kind = "gentle"
    if rng.random() >= EASY_SHARE:
        rejected = gentle_negative(scene, style, rng)
    else:
        kind = EASY_KINDS[int(rng.integers(len(EASY_KINDS)))]
        rejected = easy_negative(kind, scene, chosen, rng)
    return {
        "id": row_id,
        "images": [f"images/{row_id}.png"],
        "prompt": [{"role": "user", "content": PROMPT}],
        "chosen": chosen,
        "rejected": rejected,
        "gentle": gentle_negative(scene, style, rng),
        "kind": kind,
    }


def read_scenes(path: Path) -> dict[str, Scene]:
    """Read the ground truth that :func:`write_world` wrote, by row id."""
    truth = json.loads(path.read_text(encoding="utf-8"))
    return {row_id: tuple(Thing(**thing) for thing in things) for row_id, things in truth.items()}


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene at random: one thing in a third of the scenes, else two, never two at one position."""
    count = 1 if rng.random() < 1 / 3 else 2
    places = rng.permutation(len(POSITIONS))[:count]
    return tuple(
        Thing(
            colour=COLOURS[rng.integers(len(COLOURS))],
            shape=SHAPES[rng.integers(len(SHAPES))],
            size=SIZES[rng.integers(len(SIZES))],
            position=POSITIONS[place],
        )
        for place in places
    )


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Paint a scene in RGB: light ground, jittered hue, place and radius, then pixel noise."""
    ground = int(rng.integers(205, 245))
    canvas = Image.new("RGB", (IMAGE_SIZE * _SCALE,) * 2, (ground,) * 3)
    brush = ImageDraw.Draw(canvas)
    for thing in scene:
        _draw_thing(brush, thing, rng)
    small = np.asarray(canvas.reduce(_SCALE), dtype=np.float32)
    noisy = small + rng.normal(0.0, _NOISE, size=small.shape).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def sample_style(scene: Scene, rng: np.random.Generator) -> Style:
    """Choose synonyms, phrase forms and order at random."""
    picks = [rng.random(5).tolist() for _ in scene]
    phrases = tuple(
        PhraseStyle(colour, shape, size, position, place_first=form < 0.5)
        for colour, shape, size, position, form in picks
    )
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
    """Read a caption back: the things in the order named (any number of them), or None for text not in the grammar.

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
        things.append(Thing(**value))
    return tuple(things)


def grammar_words() -> list[str]:
    """Every word a caption may hold, sorted."""
    words = {"a", "and", "at", "the", "there", "is"}
    for values in SYNONYMS.values():
        words.update(word for synonyms in values.values() for synonym in synonyms for word in synonym.split())
    return sorted(words)


def check_caption(caption: str, scene: Scene) -> Verdict:
    """Compare a caption with the scene it describes.

    Example:
        >>> scene = (Thing("red", "disc", "small", "top left"),)
        >>> check_caption("a big red disc at the top left", scene)
        Verdict(exact=False, attributes=0.75, hallucinated=False)
    """
    named = parse_caption(caption)
    if named is None:
        return Verdict(exact=False, attributes=0.0, hallucinated=True)
    present = {(thing.colour, thing.shape) for thing in scene}
    return Verdict(
        exact=Counter(named) == Counter(scene),
        attributes=_attribute_score(named, scene),
        hallucinated=any((thing.colour, thing.shape) not in present for thing in named),
    )


def win_rate(captions: Sequence[str], rivals: Sequence[str], scenes: Sequence[Scene]) -> float:
    """Share of pairs that the first caption wins, ties half: exact beats inexact, else more right attributes win."""
    if not len(captions) == len(rivals) == len(scenes) or not scenes:
        raise ValueError(
            f"expected one caption, rival and scene each, got {len(captions)}, {len(rivals)}, {len(scenes)}"
        )
    points = 0.0
    for caption, rival, scene in zip(captions, rivals, scenes, strict=True):
        ours, theirs = (check_caption(text, scene)[:2] for text in (caption, rival))  # exact, then attributes
        points += 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    return points / len(scenes)


def gentle_negative(scene: Scene, style: Style, rng: np.random.Generator) -> str:
    """The scene's caption in the same style with one attribute of one thing changed."""
    index = int(rng.integers(len(scene)))
    changed = list(scene)
    changed[index] = replace(scene[index], **_changed_attribute(scene, index, rng))
    return write_caption(tuple(changed), style)


def easy_negative(kind: Kind, scene: Scene, caption: str, rng: np.random.Generator) -> str:
    """A caption that is obviously wrong, of one of :data:`EASY_KINDS`; ``shuffled`` has a right caption's words."""
    if kind == "off_topic":
        return off_topic_sentence(rng)
    if kind == "shuffled":
        words = caption.split()
        while True:
            mixed = " ".join(str(word) for word in rng.permutation(words))
            if parse_caption(mixed) is None:
                return mixed
    if kind != "other_scene":
        raise ValueError(f"{kind!r} is not an easy negative; write one of {', '.join(EASY_KINDS)}")
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


_HUE = dict(zip(COLOURS, (0.0, 28.0, 55.0, 120.0, 180.0, 225.0, 275.0, 322.0), strict=True))
_HUE_JITTER = 10.0  # degrees; neighbours such as red and orange come close, so that colour errors happen
_RADIUS: dict[Size, tuple[float, float]] = {"small": (2.7, 3.8), "large": (5.0, 6.5)}
_NOISE = 12.0  # standard deviation in units of 1/255
_SCALE = 4  # drawn larger and reduced, so that edges are smooth


def _draw_thing(brush: ImageDraw.ImageDraw, thing: Thing, rng: np.random.Generator) -> None:
    hue = _HUE[thing.colour] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, rng.uniform(0.75, 1.0), rng.uniform(0.7, 0.95))
    fill = (int(red * 255), int(green * 255), int(blue * 255))
    quarter = IMAGE_SIZE * _SCALE / 4
    down, right = thing.position.split()
    x = (3 if right == "right" else 1) * quarter + rng.uniform(-1.0, 1.0) * _SCALE
    y = (3 if down == "bottom" else 1) * quarter + rng.uniform(-1.0, 1.0) * _SCALE
    radius = rng.uniform(*_RADIUS[thing.size]) * _SCALE
    if thing.shape == "disc":
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif thing.shape == "cross":
        arm = radius * 0.36
        brush.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        brush.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    else:
        brush.polygon(_corners(thing.shape, x, y, radius), fill=fill)


def _corners(shape: Shape, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a regular polygon whose area is near that of the disc of this radius."""
    count, start = {"square": (4, 45.0), "diamond": (4, 0.0), "triangle": (3, -90.0)}[shape]
    reach = radius * 1.15
    angles = [math.radians(start + 360 * corner / count) for corner in range(count)]
    return [(x + reach * math.cos(angle), y + reach * math.sin(angle)) for angle in angles]


_VALUE_OF: dict[str, dict[str, Any]] = {
    attribute: {word: value for value, words in values.items() for word in words}
    for attribute, values in SYNONYMS.items()
}

_SIZE, _COLOUR, _SHAPE, _POSITION = (
    "(?P<{}>{})".format(attribute, "|".join(_VALUE_OF[attribute]))
    for attribute in ("size", "colour", "shape", "position")
)

_PHRASES = (
    re.compile(f"a {_SIZE} {_COLOUR} {_SHAPE} at the {_POSITION}"),
    re.compile(f"at the {_POSITION} there is a {_SIZE} {_COLOUR} {_SHAPE}"),
)


def _phrase(thing: Thing, style: PhraseStyle) -> str:
    word = {}
    for attribute in (f.name for f in fields(thing)):
        synonyms = SYNONYMS[attribute][getattr(thing, attribute)]
        word[attribute] = synonyms[int(getattr(style, attribute) * len(synonyms))]
    named, place = f"a {word['size']} {word['colour']} {word['shape']}", f"at the {word['position']}"
    return f"{place} there is {named}" if style.place_first else f"{named} {place}"


def _attribute_score(named: Sequence[Thing], scene: Scene) -> float:
    few, many = sorted((tuple(named), tuple(scene)), key=len)
    if len(many) > 4:  # more things than positions: no picture is like that, and permutations would explode
        return 0.0
    names = [f.name for f in fields(Thing)]

    def shared(one: Thing, other: Thing) -> int:
        return sum(getattr(one, name) == getattr(other, name) for name in names)

    best = max(sum(map(shared, few, order)) for order in permutations(many, len(few)))
    return best / (len(names) * len(many))


_NEAR_COLOUR = 0.8  # share of colour changes that go to a neighbour on the colour wheel
_WHO = ("my neighbour", "our teacher", "an old sailor", "that orchestra", "somebody", "her cousin")
_DOES = ("cooks soup", "reads newspapers", "repairs bicycles", "practises chess", "waters tomatoes", "plays music")
_WHEN = ("on sundays", "before breakfast", "during winter", "every evening", "in autumn", "after work")


def _changed_attribute(scene: Scene, index: int, rng: np.random.Generator) -> dict[str, Any]:
    thing = scene[index]
    attribute = str(rng.choice(["colour", "shape", "size", "position"], p=[0.4, 0.2, 0.2, 0.2]))
    if attribute == "colour" and rng.random() < _NEAR_COLOUR:
        step = int(rng.choice([-1, 1]))
        return {"colour": COLOURS[(COLOURS.index(thing.colour) + step) % len(COLOURS)]}
    taken = {other.position for other in scene} if attribute == "position" else {getattr(thing, attribute)}
    free = [value for value in SYNONYMS[attribute] if value not in taken]
    return {attribute: free[int(rng.integers(len(free)))]}
