"""Pictures show what their scene says."""

import colorsys
from collections import Counter

import numpy as np
import pytest

from cwdpo.demo.world import COLOURS, POSITIONS, SHAPES, Position, Shape, Size, Thing, draw_scene, sample_scene


def painted(thing: Thing, seed: int = 0) -> np.ndarray:
    """(32, 32) True where a pixel is clearly coloured, judged by saturation alone."""
    pixels = np.asarray(draw_scene((thing,), np.random.default_rng(seed)), dtype=float)
    return pixels.max(axis=2) - pixels.min(axis=2) > 80


@pytest.mark.parametrize("position", POSITIONS)
def test_a_thing_stands_in_its_quarter(position: Position) -> None:
    rows, columns = np.nonzero(painted(Thing("blue", "square", "large", position)))
    assert (rows.mean() < 16) == ("top" in position)
    assert (columns.mean() < 16) == ("left" in position)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_larger_than_small(shape: Shape) -> None:
    areas = {
        size: [painted(Thing("red", shape, size, "top left"), seed).sum() for seed in range(30)]
        for size in ("small", "large")
    }
    assert min(areas["large"]) > max(areas["small"])


def test_hues_stay_apart() -> None:
    """The drawn hue is nearer to its own colour's mean than to any other's in almost every picture."""
    hues = {
        colour: [_hue(Thing(colour, "disc", "large", "top left"), seed) for seed in range(40)] for colour in COLOURS
    }
    centre = {colour: np.angle(np.exp(1j * np.array(values)).mean()) for colour, values in hues.items()}
    right = sum(
        min(COLOURS, key=lambda other: abs(np.angle(np.exp(1j * (hue - centre[other]))))) == colour
        for colour, values in hues.items()
        for hue in values
    )
    assert right / 320 > 0.97


def _hue(thing: Thing, seed: int) -> float:
    pixels = np.asarray(draw_scene((thing,), np.random.default_rng(seed)), dtype=float)
    mean = pixels[painted(thing, seed)].mean(axis=0) / 255
    return 2 * np.pi * colorsys.rgb_to_hsv(*mean)[0]


def test_scenes_hold_one_or_two_things_at_different_places() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(3000)]
    count = Counter(map(len, scenes))
    assert count[1] / 3000 == pytest.approx(1 / 3, abs=0.03)
    assert set(count) == {1, 2}
    assert all(len({thing.position for thing in scene}) == len(scene) for scene in scenes)


def test_a_picture_follows_from_its_generator() -> None:
    thing: tuple[Thing, ...] = (Thing("green", "cross", "small", "top right"),)
    first, again, other = (draw_scene(thing, np.random.default_rng(seed)).tobytes() for seed in (4, 4, 5))
    assert first == again != other


def test_size_names() -> None:
    sizes: set[Size] = {thing.size for seed in range(50) for thing in sample_scene(np.random.default_rng(seed))}
    assert sizes == {"small", "large"}
