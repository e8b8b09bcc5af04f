"""Filters: what is dropped, and for which reason."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwdpo.negatives.filtering import Rules, filter_negatives, length_gap, ngram_overlap, normalised, quantile

RIGHT = ["A brown dog sleeps on the couch."]


@pytest.mark.parametrize(
    ("negative", "reason"),
    [
        ("A brown dog sleeps on the couch.", "same_as_right"),
        ("the brown dog  sleeps on a couch", "right_but_for_form"),
        ("A brown dog sleeps on the couch today.", "too_much_like_right"),
        ("No.", "other_length"),
        ("Some people wait for a train here.", "too_easy"),
    ],
)
def test_each_reason(negative: str, reason: str) -> None:
    rules = Rules(overlap=0.8, length_gap=0.5, lbar_floor=-3.0)
    found = filter_negatives(RIGHT, [negative], rules, lbars=[-5.0])
    assert found.dropped == ((0, reason),)
    assert found.reasons == {reason: 1}


def test_what_is_fine_stays_and_repetitions_do_not() -> None:
    texts = ["A grey cat sleeps on the rug.", "A grey cat sleeps on the rug.", "A bird sits on the old roof."]
    found = filter_negatives(RIGHT, texts, Rules(lbar_floor=-3.0), lbars=[-1.0, -1.0, None])
    assert found.kept == (0, 2)
    assert found.dropped == ((1, "repeated"),)


def test_repetitions_in_another_form_do_not_count() -> None:
    assert filter_negatives(["A bus."], ["A BLUE car.", "a blue car", "a red car"], Rules()).kept == (0, 2)


def test_rules_are_off_by_default() -> None:
    assert filter_negatives(RIGHT, ["No.", RIGHT[0] + " today"], Rules(), lbars=[-99.0, -99.0]).kept == (0, 1)


def test_the_floor_itself_stays() -> None:
    assert filter_negatives(["x"], ["y"], Rules(lbar_floor=-2.0), lbars=[-2.0]).kept == (0,)


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
