"""The demo's world: one or two coloured shapes on a noisy ground, with exact ground truth."""

import colorsys
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageDraw

Colour: TypeAlias = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Shape: TypeAlias = Literal["disc", "square", "triangle", "diamond", "cross"]
Size: TypeAlias = Literal["small", "large"]
Position: TypeAlias = Literal["top left", "top right", "bottom left", "bottom right"]

COLOURS: tuple[Colour, ...] = get_args(Colour)
"""In the order of the colour wheel, so that neighbours in the tuple (cyclically) look alike."""

SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
POSITIONS: tuple[Position, ...] = get_args(Position)

IMAGE_SIZE = 32
"""Side of a picture in pixels."""

_HUE: dict[Colour, float] = {
    "red": 0.0,
    "orange": 28.0,
    "yellow": 55.0,
    "green": 120.0,
    "cyan": 180.0,
    "blue": 225.0,
    "purple": 275.0,
    "pink": 322.0,
}
_HUE_JITTER = 10.0  # degrees; neighbours such as red and orange come close, so that colour errors happen
_RADIUS: dict[Size, tuple[float, float]] = {"small": (2.7, 3.8), "large": (5.0, 6.5)}
_NOISE = 12.0  # standard deviation in units of 1/255
_SCALE = 4  # drawn larger and reduced, so that edges are smooth


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: four attributes, each with a small set of values."""

    colour: Colour
    shape: Shape
    size: Size
    position: Position


Scene: TypeAlias = tuple[Thing, ...]
"""One or two things at different positions."""


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
    """Paint a scene: light ground, jittered hue, place and radius, then pixel noise.

    Returns:
        RGB image of :data:`IMAGE_SIZE` x :data:`IMAGE_SIZE` pixels.
    """
    ground = int(rng.integers(205, 245))
    canvas = Image.new("RGB", (IMAGE_SIZE * _SCALE,) * 2, (ground,) * 3)
    brush = ImageDraw.Draw(canvas)
    for thing in scene:
        _draw_thing(brush, thing, rng)
    small = np.asarray(canvas.reduce(_SCALE), dtype=np.float32)
    noisy = small + rng.normal(0.0, _NOISE, size=small.shape).astype(np.float32)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


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
