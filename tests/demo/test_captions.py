"""The grammar read back, and its words."""

import numpy as np
import pytest

from cwdpo.demo.world import (
    PhraseStyle,
    Style,
    Thing,
    grammar_words,
    parse_caption,
    sample_scene,
    sample_style,
    write_caption,
)

RED = Thing("red", "disc", "small", "top left")
BLUE = Thing("blue", "cross", "large", "bottom right")


def test_every_sampled_caption_reads_back_in_its_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        scene = sample_scene(rng)
        style = sample_style(scene, rng)
        assert parse_caption(write_caption(scene, style)) == tuple(scene[index] for index in style.order)


def test_captions_vary_and_use_every_word() -> None:
    rng = np.random.default_rng(1)
    captions = set()
    for _ in range(3000):
        scene = sample_scene(rng)
        captions.add(write_caption(scene, sample_style(scene, rng)))
    assert len(captions) > 2500
    assert sorted({word for caption in captions for word in caption.split()}) == grammar_words()


def test_known_caption() -> None:
    last, first = PhraseStyle(0.99, 0.99, 0.34, 0.5, place_first=True), PhraseStyle(0, 0, 0, 0, place_first=False)
    caption = write_caption((RED, BLUE), Style(phrases=(last, first), order=(1, 0)))
    assert caption == "a large blue cross at the bottom right and at the upper left there is a tiny red circle"
    assert parse_caption(caption) == (BLUE, RED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "red disc small a at the top left",
        "a small red disc",
        "a small red disc at the top left and",
        "a small red disc at the top left at the top left",
        "a small disc at the top left",
        "my neighbour cooks soup on sundays",
    ],
)
def test_no_caption(text: str) -> None:
    assert parse_caption(text) is None


def test_case_space_and_full_stop_do_not_matter() -> None:
    assert parse_caption("  A small  red disc at the top left. ") == (RED,)
