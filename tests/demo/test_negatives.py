"""Negatives are wrong, and wrong in the way they say."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest

from cwdpo.demo.world import (
    COLOURS,
    EASY_KINDS,
    Kind,
    Thing,
    check_caption,
    easy_negative,
    gentle_negative,
    off_topic_words,
    parse_caption,
    sample_scene,
    sample_style,
    write_caption,
)


@pytest.mark.slow
def test_gentle_changes_one_attribute_of_one_thing_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    changed: Counter[str] = Counter()
    near = 0
    for _ in range(2000):
        scene = sample_scene(rng)
        style = sample_style(scene, rng)
        right, wrong = write_caption(scene, style), gentle_negative(scene, style, rng)
        assert not check_caption(wrong, scene).exact
        before, after = parse_caption(right), parse_caption(wrong)
        assert before is not None
        assert after is not None
        differences = [
            (f.name, getattr(old, f.name), getattr(new, f.name))
            for old, new in zip(before, after, strict=True)
            for f in fields(Thing)
            if getattr(old, f.name) != getattr(new, f.name)
        ]
        [(attribute, old, new)] = differences
        changed[attribute] += 1
        if attribute == "colour":
            near += (COLOURS.index(old) - COLOURS.index(new)) % len(COLOURS) in (1, len(COLOURS) - 1)
        words = [pair for pair in zip(right.split(), wrong.split(), strict=True) if pair[0] != pair[1]]
        assert len(words) <= 2  # a position may change both its words
    assert changed["colour"] / 2000 == pytest.approx(0.4, abs=0.05)
    assert near / changed["colour"] == pytest.approx(0.8 + 0.2 * 2 / 7, abs=0.05)


@pytest.mark.parametrize("kind", EASY_KINDS)
def test_easy_negatives_are_wrong(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = sample_scene(rng)
        caption = write_caption(scene, sample_style(scene, rng))
        wrong = easy_negative(kind, scene, caption, rng)
        assert not check_caption(wrong, scene).exact
        assert (parse_caption(wrong) is not None) == (kind == "other_scene")
        if kind == "shuffled":
            assert sorted(wrong.split()) == sorted(caption.split())
        if kind == "off_topic":
            assert set(wrong.split()) <= set(off_topic_words())


def test_gentle_is_no_easy_kind() -> None:
    with pytest.raises(ValueError, match="other_scene, shuffled, off_topic"):
        easy_negative("gentle", (), "", np.random.default_rng(0))
