"""What a row says of its negatives follows them."""

from typing import Any

import pytest

from cwdpo.negatives.files import with_negatives

ROW: dict[str, Any] = {"prompt": "x", "chosen": "y", "rejected": "a", "negatives": ["b", "c"]}


@pytest.mark.parametrize(
    ("value", "kept", "expected"),
    [
        ([1, 2, 3], [0, 2], [1, 3]),
        ([1, 2], [0, 2], None),  # whose are they?
        ([1, 2, 3, 4], [0, 2], None),
        (5, [0], None),
        ({"rejected": 1, "negatives": [2, 3]}, [1, 2], {"rejected": 2, "negatives": [3]}),
        ({"gentle": 9, "rejected": 1, "negatives": [2, 3]}, [2], {"gentle": 9, "rejected": 3}),
        ({"gentle": 9, "rejected": 1}, [0], {"gentle": 9}),
        ([1, 2, 3], [], None),
    ],
)
def test_columns_keep_in_step(value: Any, kept: list[int], expected: Any) -> None:
    for name in ("negative_sources", "lbar", "ches", "w_c"):
        texts = [["a", "b", "c"][place] for place in kept] or ["new"]
        new = with_negatives({**ROW, name: value, "own": 1}, texts, kept)
        assert new.get(name) == expected
        assert new["own"] == 1
        assert [new["rejected"], *new.get("negatives", [])] == texts


def test_one_value_stays_with_one_negative() -> None:
    assert with_negatives({"rejected": "a", "lbar": -1.0}, ["a"], [0])["lbar"] == -1.0
    assert "lbar" not in with_negatives({"rejected": "a", "lbar": -1.0}, ["b"])
