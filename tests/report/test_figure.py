"""Standalone pictures: places worked out by hand, text escaped, nothing from outside."""

import re
from xml.etree import ElementTree

import pytest

from cwdpo.report.charts import Curve, Dots, Figure, draw_figure


def figure(**parts: object) -> Figure:
    fixed = {"title": "a <b> & c", "x_label": "x", "y_label": "y", "x": (0.0, 10.0), "y": (0.0, 1.0)}
    return Figure(**(fixed | parts))  # type: ignore[arg-type]


def test_places_by_hand() -> None:
    """The frame runs from (68, 246) to (544, 34), y upwards."""
    svg = draw_figure(figure(curves=[Curve("line", [(0, 0), (5, 0.5), (10, 1)])], dots=[Dots("d", [(10, 0)], 1)]))
    assert 'd="M68.0 246.0L306.0 140.0L544.0 34.0"' in svg
    assert '<circle cx="544.0" cy="246.0" r="2.5"/>' in svg


def test_what_lies_outside_is_left_out_and_lifts_the_pen() -> None:
    svg = draw_figure(figure(curves=[Curve("line", [(0, 0), (5, 2), (10, 1)])], dots=[Dots("d", [(11, 0)])]))
    assert 'd="M68.0 246.0M544.0 34.0"' in svg
    assert 'r="2.5"' not in svg


def test_it_is_xml_without_outside_references_and_with_both_schemes() -> None:
    svg = draw_figure(figure(curves=[Curve("<i>", [(0, 0)])], shade=((2.0, 4.0), "here")))
    root = ElementTree.fromstring(svg)
    assert [e.text for e in root.iter() if e.tag.endswith("title")] == ["a <b> & c"]
    assert not re.findall(r"(?:href|src|url\()", svg)
    assert "prefers-color-scheme:dark" in svg
    assert 'x="163.2" y="34" width="95.2" height="212"' in svg


def test_ticks_with_words() -> None:
    svg = draw_figure(figure(x_ticks=[(5.0, "five")]))
    assert '<text class="x" x="306.0" y="264">five</text>' in svg


def test_an_axis_without_extent_is_refused() -> None:
    with pytest.raises(ValueError, match="some extent"):
        draw_figure(figure(x=(1.0, 1.0)))
