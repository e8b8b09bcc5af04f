"""Readings that are lists, against sums done by hand."""

from typing import Any

import pytest

from cwdpo.report.runs import Histogram, first_and_last, joined_histograms, read_histograms, read_reliability

ONE = [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]


def test_a_histogram_counts_since_the_line_before() -> None:
    lines = [
        {"stage": "stage2", "step": 5, "cooling/histogram": ONE},
        {"stage": "stage2", "step": 10, "loss": 1.0},
        {"stage": "stage2", "step": 15, "cooling/histogram": ONE},
    ]
    found, broken = read_histograms(lines, {"stage1": 0, "stage2": 100})
    assert [(h.begin, h.end) for h in found] == [(100, 105), (105, 115)]
    assert found[0].shares == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75]
    assert broken == 0


@pytest.mark.parametrize("value", [3, None, [], [1] * 9, [1] * 11, [1] * 9 + ["x"], [1] * 9 + [-1], [None] * 10])
def test_what_is_no_histogram_is_counted(value: Any) -> None:
    assert read_histograms([{"stage": "s", "step": 1, "cooling/histogram": value}], {"s": 0}) == ([], 1)


def test_a_stretch_without_negatives_is_left_blank() -> None:
    assert read_histograms([{"stage": "s", "step": 1, "cooling/histogram": [0] * 10}], {"s": 0}) == ([], 0)


def test_many_histograms_are_added_up() -> None:
    many = [Histogram(float(i), float(i + 1), (float(i), *[1.0] * 9)) for i in range(5)]
    assert joined_histograms(many, most=3) == [
        Histogram(0, 2, (1.0, *[2.0] * 9)),
        Histogram(2, 4, (5.0, *[2.0] * 9)),
        Histogram(4, 5, (4.0, *[1.0] * 9)),
    ]
    assert joined_histograms(many, most=5) == many
    assert joined_histograms([], most=3) == []


def test_ece_by_hand_and_empty_bins() -> None:
    bins = [[0, 0.0, 0.0], [30, 0.6, 0.5], [10, 0.9, 0.95]]
    (reading,), broken = read_reliability([{"stage": "stage2", "step": 3, "reliability": bins}])
    assert [one.n for one in reading.bins] == [30, 10]
    assert reading.n == 40
    assert reading.ece == pytest.approx((30 * 0.1 + 10 * 0.05) / 40)
    assert broken == 0


@pytest.mark.parametrize("value", [3, [], [[1, 0.5]], [[1, 0.5, 1.5]], [[-1, 0.5, 0.5]], [[1, 0.5, 0.5], None]])
def test_what_is_no_reliability_is_counted(value: Any) -> None:
    assert read_reliability([{"stage": "s", "step": 1, "reliability": value}]) == ([], 1)


def test_first_and_last_are_of_the_last_stage() -> None:
    lines = [{"stage": stage, "step": i, "reliability": [[1, 0.5, 0.5]]} for i, stage in enumerate("abbb")]
    found, _ = read_reliability(lines)
    assert [reading.step for reading in first_and_last(found)] == [1, 3]
    assert [reading.step for reading in first_and_last(found[:2])] == [1]
