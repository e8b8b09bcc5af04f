"""Mixing: the asked share, and the same choice whatever happened before."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.config.limits import check_fraction
from cwdpo.errors import ConfigError
from cwdpo.negatives.mixing import fraction_at, mix_negatives, uniform

DATASET, SAMPLED = ["d0", "d1", "d2"], ["s0", "s1", "s2", "s3"]


def chosen(row: str, fraction: float, round: int = 0, seed: int = 0, count: int | None = None) -> list[str]:
    mixed = mix_negatives(DATASET, SAMPLED, fraction=fraction, seed=seed, row_id=row, round=round, count=count)
    return [negative.text for negative in mixed]


def test_uniform_is_pinned() -> None:
    """A changed hash would change every run that is resumed."""
    assert [round(uniform(0, "row", step), 6) for step in range(3)] == [0.852818, 0.04277, 0.104068]


def test_uniform_is_uniform() -> None:
    values = sorted(uniform(7, "row", step) for step in range(4000))
    assert all(0 <= value < 1 for value in values)
    assert max(abs(value - place / 4000) for place, value in enumerate(values)) < 0.03  # Kolmogorov: 1.63 / sqrt(n)


def test_parts_are_kept_apart() -> None:
    assert uniform(0, "a", "bc") != uniform(0, "ab", "c")
    assert uniform(1, "1") != uniform(11, "")


def test_extremes() -> None:
    for row in map(str, range(50)):
        assert set(chosen(row, 0.0)) == set(DATASET)
        assert set(chosen(row, 1.0)) < set(SAMPLED)
        assert len(chosen(row, 1.0)) == 3


def test_the_share_is_the_one_asked_for() -> None:
    taken = [text for row in range(2000) for text in chosen(str(row), 0.3, count=1)]
    assert sum(text.startswith("s") for text in taken) / len(taken) == pytest.approx(0.3, abs=0.04)


@given(order=st.permutations(range(20)), split=st.integers(1, 7))
def test_order_and_workers_do_not_matter(order: list[int], split: int) -> None:
    straight = {row: chosen(str(row), 0.5, round=3) for row in range(20)}
    shards = [order[worker::split] for worker in range(split)]
    assert {row: chosen(str(row), 0.5, round=3) for shard in shards for row in shard} == straight


def test_global_random_state_does_not_matter() -> None:
    random.seed(1)
    before = chosen("a", 0.5)
    random.seed(2)
    assert chosen("a", 0.5) == before


def test_rounds_rows_and_seeds_choose_anew() -> None:
    rows = list(map(str, range(40)))
    base = [chosen(row, 0.5) for row in rows]
    assert base != [chosen(row, 0.5, round=1) for row in rows]
    assert base != [chosen(row, 0.5, seed=1) for row in rows]
    assert len({tuple(texts) for texts in base}) > 10


def test_a_round_chooses_anew_within_one_source() -> None:
    assert {chosen("a", 0.0, round=number, count=1)[0] for number in range(30)} == set(DATASET)


def test_one_source_fills_in_for_the_other() -> None:
    assert [item.text for item in mix_negatives(["d"], [], fraction=1.0, seed=0, row_id="r")] == ["d"]
    assert [item.text for item in mix_negatives([], ["s"], fraction=0.0, seed=0, row_id="r")] == ["s"]
    assert mix_negatives([], [], fraction=0.5, seed=0, row_id="r") == []


def test_no_text_twice() -> None:
    mixed = mix_negatives(["same", "same", "other"], ["same"], fraction=0.5, seed=0, row_id="r", count=9)
    assert sorted(item.text for item in mixed) == ["other", "same"]


def test_no_text_twice_in_another_form() -> None:
    mixed = mix_negatives(["A BLUE car."], ["a blue car", "a bus"], fraction=0.0, seed=0, row_id="r", count=3)
    assert [item.text for item in mixed] == ["A BLUE car.", "a bus"]


def test_no_text_twice_in_another_form_where_names_stand_for_texts() -> None:
    texts = {"k1": "A BLUE car.", "k2": "a blue car", "k3": "a bus"}
    mixed = mix_negatives(["k1"], ["k2", "k3"], fraction=0.0, seed=0, row_id="r", count=3, text_of=texts)
    assert [item.text for item in mixed] == ["k1", "k3"]
    without = mix_negatives(["k1"], ["k2", "k3"], fraction=0.0, seed=0, row_id="r", count=3)
    assert sorted(item.text for item in without) == ["k1", "k2", "k3"]


def test_names_choose_as_their_texts_do() -> None:
    texts = {f"k{text}": text for text in (*DATASET, *SAMPLED)}
    names = [[f"k{text}" for text in source] for source in (DATASET, SAMPLED)]
    for row in map(str, range(50)):
        mixed = mix_negatives(*names, fraction=0.5, seed=0, row_id=row, text_of=texts)
        assert [texts[negative.text] for negative in mixed] == chosen(row, 0.5)


def test_the_place_of_a_negative_is_returned() -> None:
    for item in mix_negatives(DATASET, SAMPLED, fraction=0.5, seed=0, row_id="r", count=7):
        assert {"dataset": DATASET, "on_policy": SAMPLED}[item.source][item.index] == item.text


def by_level(level: float, fraction: float, count: int) -> list[str]:
    """Easiest first: d1 d2 d0 and s3 s0 s2 s1."""
    lbars = {"d0": -1.0, "d1": -3.0, "d2": -2.0, "s0": -2.5, "s1": -0.5, "s2": -1.5, "s3": -3.5}
    mixed = mix_negatives(
        DATASET, SAMPLED, fraction=fraction, seed=0, row_id="r", count=count, level=level, lbars=lbars
    )
    return [negative.text for negative in mixed]


def test_a_level_chooses_within_its_source() -> None:
    assert by_level(0.0, 0.0, 2) == ["d1", "d2"]
    assert by_level(1.0, 0.0, 2) == ["d0", "d2"]
    assert by_level(0.5, 0.0, 1) == ["d2"]
    assert by_level(1.0, 1.0, 3) == ["s1", "s2", "s0"]
    assert by_level(0.3, 1.0, 2) == [
        "s0",
        "s3",
    ]  # 0.3 * 3 = 0.9, nearest rank 1; rank 0 is nearer than rank 2
    assert by_level(0.0, 1.0, 6) == ["s3", "s0", "s2", "s1", "d1", "d2"]


def test_equally_hard_ones_are_taken_in_their_own_order() -> None:
    for row in map(str, range(20)):
        mixed = mix_negatives(
            DATASET, [], fraction=0, seed=0, row_id=row, level=0.0, lbars=dict.fromkeys(DATASET, -1.0)
        )
        assert [negative.text for negative in mixed] == DATASET


def test_a_level_leaves_the_share_as_it_is() -> None:
    def sources(row: int, level: float | None) -> list[str]:
        lbars = {text: -float(i) for i, text in enumerate(DATASET + SAMPLED)}
        return [
            negative.source
            for negative in mix_negatives(
                DATASET, SAMPLED, fraction=0.4, seed=0, row_id=str(row), count=3, level=level, lbars=lbars
            )
        ]

    assert all(sources(row, None) == sources(row, 0.7) for row in range(100))


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0.0, 0.2), (0.1, 0.2), (0.2, 0.2), (0.3, 0.35), (0.6, 0.8), (0.8, 0.4), (0.95, 0.1), (1, 0.1)],
)
def test_a_schedule_is_straight_between_its_points(progress: float, share: float) -> None:
    assert fraction_at([[0.2, 0.2], [0.6, 0.8], [0.9, 0.2], [0.95, 0.1]], progress) == pytest.approx(share)


@pytest.mark.parametrize(
    "value", [1.5, -0.1, True, "half", [], [[0, 2]], [[0.5, 0], [0.5, 1]], [[1, 0], [0, 1]], [[0]], [0.5], float("nan")]
)
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="on_policy_fraction is"):
        check_fraction(value)  # type: ignore[arg-type]
