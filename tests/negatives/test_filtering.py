"""Filters: what is dropped, and for which reason."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.negatives.filtering import (
    Rules,
    filter_negatives,
    hardness_reason,
    length_gap,
    ngram_overlap,
    normalised,
    quantile,
    threshold,
)

RIGHT = ["A brown dog sleeps on the couch."]


@pytest.mark.parametrize(
    ("negative", "reason"),
    [
        ("A brown dog sleeps on the couch.", "same_as_right"),
        ("the brown dog  sleeps on a couch", "right_but_for_form"),
        ("A brown dog sleeps on the couch today.", "too_much_like_right"),
        ("No.", "other_length"),
        ("Some people wait for a train here.", None),
    ],
)
def test_each_reason(negative: str, reason: str | None) -> None:
    assert filter_negatives(RIGHT, [negative], Rules(overlap=0.8, length_gap=0.5)) == [reason]


def test_what_is_fine_stays_and_repetitions_do_not() -> None:
    texts = ["A grey cat sleeps on the rug.", "A grey cat sleeps on the rug.", "A bird sits on the old roof."]
    assert filter_negatives(RIGHT, texts, Rules()) == [None, "repeated", None]


def test_repetitions_in_another_form_do_not_count() -> None:
    assert filter_negatives(["A bus."], ["A BLUE car.", "a blue car", "a red car"], Rules()) == [None, "repeated", None]


def test_rules_are_off_by_default() -> None:
    assert filter_negatives(RIGHT, ["No.", RIGHT[0] + " today"], Rules()) == [None, None]
    assert hardness_reason(lbar=-99.0, ches=99.0) is None


@pytest.mark.parametrize(
    ("lbar", "ches", "reason"),
    [
        (-5.0, 0.0, "too_easy"),
        (-2.0, 1.0, None),  # the limits themselves stay
        (-1.0, 1.5, "too_similar"),
        (-5.0, 1.5, "too_easy"),
        (None, None, None),  # not measured
    ],
)
def test_hardness(lbar: float | None, ches: float | None, reason: str | None) -> None:
    assert hardness_reason(lbar=lbar, floor=-2.0, ches=ches, ceiling=1.0) == reason


def test_a_threshold_is_a_number_or_a_quantile() -> None:
    assert threshold([-1.0, -2.0], "quantile:0.25") == -1.75
    assert threshold([-1.0, -2.0], -7) == -7.0


def test_overlap_by_hand() -> None:
    # 4 words each; 3 of 4 unigrams and 2 of 3 bigrams are shared, 1 of 2 trigrams: (3/4 + 2/3 + 1/2) / 3
    assert ngram_overlap("red dog on grass", "red dog on sand") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2) / 3)
    assert ngram_overlap("dog", "dog sleeps") == pytest.approx(2 / 3)
    assert ngram_overlap("", "dog") == 0
    # a word that stands twice in one and once in the other is shared once: F1 = 2 * 1 / (2 + 1)
    assert ngram_overlap("dog dog", "dog", 1) == pytest.approx(2 / 3)


@given(st.text(max_size=30), st.text(max_size=30))
def test_overlap_is_symmetric_and_a_share(one: str, other: str) -> None:
    assert 0 <= ngram_overlap(one, other) <= 1
    assert ngram_overlap(one, other) == ngram_overlap(other, one)


def test_length_gap_by_hand() -> None:
    assert length_gap(["one two three four"], "one") == pytest.approx(0.75)
    assert length_gap(["one two three four", "one two"], "one") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A dog.", "the dog", True),
        ("Café!", "cafe\u0301", True),
        ("A", "B", False),
        ("A", "The", False),
        ("4.5 km", "45 km", False),
        ("?", "!", False),
        ("dog's bed", "dogs bed", False),
    ],
)
def test_normalised(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) is same


def test_quantile_is_numpys() -> None:
    values = [random.Random(0).uniform(-5, 0) for _ in range(17)]
    for q in (0, 0.1, 0.33, 0.5, 1):
        assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)))
    with pytest.raises(ValueError, match="quantile"):
        quantile([], 0.5)
    with pytest.raises(ValueError, match="finite"):
        quantile([float("nan")], 0.5)
