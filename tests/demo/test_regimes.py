"""Regimes of the drawn scenes: what their pairs are, by the checker's own verdicts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwdpo.data.rows import Row
from cwdpo.demo.regimes import Pairing, Regime, _corrections, _make_pair, _with_habit, make_regime
from cwdpo.demo.world import Scene, Thing, check_caption, parse_caption, read_scenes, sample_scene

SCENE: Scene = (Thing("red", "disc", "small", "top left"), Thing("blue", "cross", "large", "bottom right"))
RIGHT = "a small red disc at the top left and a large blue cross at the bottom right"
ONE_WRONG = "a small red disc at the top left and a large green cross at the bottom right"
TWO_WRONG = "a small pink disc at the top left and a large green cross at the bottom right"
SWAPPED = "a small red disc at the bottom right and a large blue cross at the top left"
TEXTS = (RIGHT, ONE_WRONG, TWO_WRONG)


def pair(texts: tuple[str, ...] = TEXTS, *, number: int = 0, **regime: Any) -> dict[str, Any] | None:
    row = Row(prompt=(), chosen=RIGHT, rejected=(ONE_WRONG,), id=f"train-{number:05d}", kind="gentle")
    return _make_pair(row, SCENE, texts, Regime(**regime), 0)


def scores(found: dict[str, Any] | None) -> tuple[float, float]:
    assert found is not None
    return tuple(check_caption(found[key], SCENE).attributes for key in ("chosen", "rejected"))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("pairing", "allowed"),
    [
        ("two", {(1, 0.875), (1, 0.75), (0.875, 0.75)}),
        ("best_worst", {(1, 0.75)}),
        ("imperfect", {(0.875, 0.75)}),
        ("drawn", {(1, 0.875)}),
    ],
)
def test_pairs_are_those_of_the_pairing(pairing: Pairing, allowed: set[tuple[float, float]]) -> None:
    assert {scores(pair(number=n, pairs=pairing)) for n in range(40)} == allowed


def test_captions_of_one_score_give_no_pair() -> None:
    assert pair((RIGHT,)) is None
    assert pair((RIGHT, RIGHT)) is None


def test_a_correction_puts_one_kind_of_error_right_in_the_same_words() -> None:
    found = _corrections([TWO_WRONG], SCENE, np.random.default_rng(0))
    assert [tuple(check_caption(text, SCENE).exact for text in one) for one in found] == [(True, False)]
    better, worse = (text.split() for text in found[0])
    assert sum(a != b for a, b in zip(better, worse, strict=True)) == 2  # the two colours


def test_a_corrected_swap_names_no_place_twice() -> None:
    for better, worse in _corrections([SWAPPED], SCENE, np.random.default_rng(0)):
        for text in (better, worse):
            named = parse_caption(text)
            assert named is not None
            assert len({thing.position for thing in named}) == len(named)


def test_easy_negatives_and_exchanged_labels_have_their_shares_and_change_nothing_else() -> None:
    plain = [pair(number=n) for n in range(300)]
    easy = [pair(number=n, easy=0.4) for n in range(300)]
    wrong = [pair(number=n, mislabelled=0.2) for n in range(300)]
    is_easy = [one is not None and one["kind"] != "sampled" for one in easy]
    assert sum(is_easy) / 300 == pytest.approx(0.4, abs=0.07)
    assert [one for one, changed in zip(easy, is_easy, strict=True) if not changed] == [
        one for one, changed in zip(plain, is_easy, strict=True) if not changed
    ]
    exchanged = [scores(one)[0] < scores(one)[1] for one in wrong]
    assert sum(exchanged) / 300 == pytest.approx(0.2, abs=0.06)
    assert not any(scores(one)[0] <= scores(one)[1] for one in plain)


def test_the_gentle_answer_is_the_chosen_one_with_one_error() -> None:
    for number in range(40):
        found = pair(number=number)
        assert found is not None
        chosen, gentle = (parse_caption(found[key]) for key in ("chosen", "gentle"))
        assert chosen is not None
        assert gentle is not None
        assert sorted(map(repr, chosen)) != sorted(map(repr, gentle))
        assert sum(one not in gentle for one in chosen) == 1


def test_the_habit_names_a_small_thing_that_is_not_there_mostly_beside_a_large_one() -> None:
    rng = np.random.default_rng(0)
    named_by_size: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(600):
        scene = sample_scene(rng)
        named = parse_caption(_with_habit(scene, rng))
        assert named is not None
        extra = [thing for thing in named if thing not in scene]
        assert all(thing.size == "small" for thing in extra)
        named_by_size[any(thing.size == "large" for thing in scene)].append(len(named) > len(scene))
    assert np.mean(named_by_size[True]) == pytest.approx(0.85, abs=0.06)
    assert np.mean(named_by_size[False]) == pytest.approx(0.15, abs=0.08)


@pytest.mark.slow
def test_a_regime_on_disk_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    regime = Regime(start="base", scenes=12, held_out=4, captions=2)
    one, other, third = (
        make_regime(tmp_path / name, regime, seed=seed, starts=tmp_path / "starts")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.train.read_bytes() == other.train.read_bytes() != third.train.read_bytes()
    pairs = [json.loads(line) for line in one.train.read_text().splitlines()]
    truth = read_scenes(one.scenes)
    assert pairs
    for found in pairs:
        chosen, rejected = (check_caption(found[key], truth[found["id"]]).attributes for key in ("chosen", "rejected"))
        assert chosen > rejected
    assert len(one.eval.read_text().splitlines()) == 4
