"""The demo's judges: the truth, and what words alone can say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.demo.judge import as_good_as_chosen, right_captions, same_clauses, same_meanings
from cwdpo.demo.world import read_scenes, sample_scene, sample_style, write_caption, write_world

CHOSEN = "a small red disc at the top left and at the lower right there is a big blue box"


@pytest.mark.parametrize(
    ("caption", "words", "meanings"),
    [
        ("at the lower right there is a big blue box and at the top left there is a small red disc", True, True),
        ("a tiny red circle at the upper left and a huge blue square at the bottom right", False, True),
        ("a small blue disc at the top left and at the lower right there is a big red box", False, False),  # swapped
        ("a small red disc at the top left", False, False),
        ("a small red disc at the top right and at the lower right there is a big blue box", False, False),
        (f"{CHOSEN} and a small red disc at the top left", False, False),
        (CHOSEN.upper() + ".", True, True),
    ],
)
def test_what_words_say(caption: str, words: bool, meanings: bool) -> None:
    row = Row(prompt=(), chosen=CHOSEN)
    assert (same_clauses([row], [caption]), same_meanings([row], [caption])) == ([words], [meanings])


def test_synonyms_find_every_right_caption_and_none_that_is_wrong(tmp_path: Path) -> None:
    """Any wording of the picture, and any of another picture, as the exact checker judges them."""
    world = write_world(tmp_path, seed=3, train=40, eval=1)
    rows, truth, rng = read_rows(world.train), read_scenes(world.scenes), np.random.default_rng(0)
    asked = [row for row in rows for _ in range(6)]
    scenes = [truth[row.id] if i % 2 else sample_scene(rng) for i, row in enumerate(asked)]
    captions = [write_caption(scene, sample_style(scene, rng)) for scene in scenes]
    right = right_captions(asked, captions)
    assert same_meanings(asked, captions) == right
    assert sum(right) >= 120
    assert sum(same_clauses(asked, captions)) < 60


def test_a_sample_is_a_negative_only_where_it_is_worse_than_the_chosen_caption(tmp_path: Path) -> None:
    world = write_world(tmp_path, seed=3, train=10, eval=1)
    truth, rng = read_scenes(world.scenes), np.random.default_rng(0)
    row = next(row for row in read_rows(world.train) if len(truth[row.id]) == 2)
    right = truth[row.id]
    one_wrong = (replace(right[0], size="small" if right[0].size == "large" else "large"), right[1])
    two_wrong = (one_wrong[0], replace(right[1], size="small" if right[1].size == "large" else "large"))
    said = [write_caption(scene, sample_style(scene, rng)) for scene in (right, one_wrong, two_wrong)]
    mediocre = replace(row, chosen=said[1])
    assert as_good_as_chosen([mediocre] * 3, said) == [True, True, False]
    assert right_captions([mediocre] * 3, said) == [True, False, False]
