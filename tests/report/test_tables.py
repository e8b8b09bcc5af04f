"""Formats, the best of a column, and tables that are not what they should be."""

from typing import Any

import pytest

from cwdpo.report.tables import comparison_table


def table(better: str | None, form: str, *values: object) -> list[tuple[str, bool]]:
    """Text and best mark of each value in a table of one column."""
    columns = [{"key": "x", "label": "X", "better": better, "format": form}]
    found = comparison_table({"table": {"columns": columns, "rows": [{"name": str(v), "x": v} for v in values]}})
    assert found is not None
    return [(cells[0].text, cells[0].best) for _, cells in found.rows]


def test_best_follows_the_direction() -> None:
    assert table("up", ".1f", 1, 3, 2) == [("1.0", False), ("3.0", True), ("2.0", False)]
    assert table("down", ".1f", 1, 3, 2) == [("1.0", True), ("3.0", False), ("2.0", False)]
    assert table(None, ".1f", 1, 3) == [("1.0", False), ("3.0", False)]


def test_values_that_look_alike_share_the_mark_or_have_none() -> None:
    assert table("up", ".2f", 0.501, 0.499, 0.1) == [("0.50", True), ("0.50", True), ("0.10", False)]
    assert table("up", ".2f", 0.501, 0.499) == [("0.50", False), ("0.50", False)]
    assert table("up", ".2f", 0.5) == [("0.50", False)]


def test_what_is_no_number_is_shown_and_never_best() -> None:
    assert table("down", ".1f", None, "n/a", float("nan"), 2, 1) == [
        ("-", False),
        ("n/a", False),
        ("nan", False),
        ("2.0", False),
        ("1.0", True),
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (".3f", "1234.500"),
        ("+.2f", "+1234.50"),
        (",.1f", "1,234.5"),
        (".0%", "123450%"),
        ("d", "1.23e+03"),
        (".3g", "1.23e+03"),
    ],
)
def test_formats(form: str, text: str) -> None:
    assert table(None, form, 1234.5)[0][0] == text


@pytest.mark.parametrize("form", ["999999999d", ".99f", "x", "{}", ""])
def test_format_we_do_not_obey_is_replaced(form: str) -> None:
    assert table(None, form, 0.12345)[0][0] == "0.123"


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"columns": 3}, {"columns": [1], "rows": [2]}, {"columns": [{"key": "x"}]}]
)
def test_broken_table_is_no_table(broken: Any) -> None:
    assert comparison_table({"table": broken}) is None
