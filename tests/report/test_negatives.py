"""The page of negatives: everything of the rows is on it, escaped, and it needs nothing outside itself."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data.rows import Message, Row
from cwdpo.errors import UserError
from cwdpo.negatives.candidates import Candidate, Refresh, refresh_path, write_refresh
from cwdpo.report.negatives import is_refresh, marked, write_negatives_page

ROW: dict[str, Any] = {
    "id": "<i>",
    "image": "a.png",
    "prompt": "What?",
    "chosen": "a red car & <b>one</b> bus",
    "rejected": "nothing like it at all",
    "negatives": ["a green car & <b>one</b> bus"],
    "gentle": "a blue car & <b>one</b> bus",
    "gentle_edit": {"kind": "colour", "before": [2, 5], "after": [2, 6]},
    "kind": "easy",
}


def page_of(folder: Path, *rows: dict[str, Any], **options: Any) -> str:
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write_negatives_page(folder / "rows.jsonl", folder / "page.html", **options).read_text()


def cards(page: str) -> list[str]:
    return re.findall("<article.*?</article>", page, re.DOTALL)


def test_every_negative_has_a_card_with_its_edit_marked(tmp_path: Path) -> None:
    gentle, rejected, further = cards(page_of(tmp_path, ROW))
    assert "a <del>red</del> car &amp; &lt;b&gt;one&lt;/b&gt; bus" in gentle
    assert "a <ins>blue</ins> car &amp;" in gentle
    assert "gentle: colour" in gentle
    assert "rejected: easy" in rejected
    assert "<ins>" not in rejected
    assert "<ins>green</ins>" in further
    assert all("data:image/png;base64," in card and "&lt;i&gt;" in card for card in (gentle, rejected, further))


@pytest.mark.parametrize(
    ("lbar", "expected"),
    [
        ({"gentle": -1.5, "rejected": -3.0, "negatives": [-0.25]}, ["-1.5", "-3.0", "-0.25"]),
        ([-3.0, -0.25], [None, "-3.0", "-0.25"]),
        (-1.0, [None, None, None]),
        ("x", [None, None, None]),
        ({"gentle": float("nan"), "negatives": []}, [None, None, None]),
    ],
)
def test_hardness_belongs_to_its_negative(tmp_path: Path, lbar: Any, expected: list[str | None]) -> None:
    found = cards(page_of(tmp_path, {**ROW, "lbar": lbar, "w_c": lbar}))
    for name in ("lbar", "weight"):
        values = [re.search(f'data-{name}="([^"]*)"', card) for card in found]
        assert [value and value[1] for value in values] == expected


def test_a_single_number_belongs_to_a_single_negative(tmp_path: Path) -> None:
    (card,) = cards(page_of(tmp_path, {"prompt": "x", "chosen": "y", "rejected": "z", "lbar": -2}))
    assert 'data-lbar="-2' in card
    assert "lbar -2.00" in card


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = page_of(tmp_path, ROW)
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    for tag in ("style", "script"):
        text = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert text is not None
        digest = base64.b64encode(hashlib.sha256(text[1].encode()).digest()).decode()
        assert f"sha256-{digest}" in page


def test_the_limit_is_told(tmp_path: Path) -> None:
    page = page_of(tmp_path, ROW, ROW, ROW, limit=2)
    assert len(cards(page)) == 6
    assert "the file has 1 more" in page


def test_a_missing_picture_is_told(tmp_path: Path) -> None:
    page = page_of(tmp_path, {**ROW, "image": "b.png"})
    assert "its picture cannot be shown" in page
    assert "no picture" in page


def test_nothing_to_show_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no row has a negative"):
        page_of(tmp_path, {"prompt": "x", "chosen": "y"})


def test_marks_put_together_are_the_texts() -> None:
    right, wrong = "A dog, on the mat!", "A cat, under the mat!"
    for text, pieces in zip((right, wrong), marked(right, wrong), strict=True):
        assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, differs in marked(right, wrong)[1] if differs] == ["cat", "under"]


def test_only_a_page_of_ours_is_replaced(tmp_path: Path) -> None:
    page_of(tmp_path, ROW)
    rows = tmp_path / "rows.jsonl"
    data = rows.read_bytes()
    with pytest.raises(UserError, match="--out names the data"):
        write_negatives_page(rows, rows)
    (tmp_path / "link.html").symlink_to(rows)
    with pytest.raises(UserError, match="--out names the data"):
        write_negatives_page(rows, tmp_path / "link.html")
    (tmp_path / "other.html").write_text("<!doctype html><title>mine</title>")
    with pytest.raises(UserError, match="not a page of this command"):
        write_negatives_page(rows, tmp_path / "other.html")
    assert rows.read_bytes() == data
    assert (tmp_path / "other.html").read_text().endswith("mine</title>")
    assert "another one" in page_of(tmp_path, {**ROW, "rejected": "another one"})  # its own older page


def test_the_edits_own_spans_are_marked(tmp_path: Path) -> None:
    """A diff would say otherwise: it marks whole words, and knows nothing of what was meant."""
    edit = {"kind": "object", "parts": [{"before": [0, 5], "after": [0, 5]}, {"before": [10, 13], "after": [10, 13]}]}
    row = {"prompt": "x", "chosen": "A dog. An ant.", "gentle": "A cat. An elk.", "gentle_edit": edit}
    (card,) = cards(page_of(tmp_path, row))
    assert "<del>A dog</del>. An <del>ant</del>." in card
    assert "<ins>A cat</ins>. An <ins>elk</ins>." in card
    (card,) = cards(page_of(tmp_path, {**row, "gentle": "A cow. An elk here."}))  # an edit of another text
    assert "<ins>cow</ins>. An <ins>elk here</ins>." in card


def test_ches_is_shown_and_sorted_by(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"prompt": "x", "chosen": "y", "rejected": "z", "lbar": [-2.0], "ches": [-0.5]})
    assert 'data-ches="-0.5"' in page
    assert "CHES -0.50" in page
    assert 'by("ches", -1)' in page


def candidates(*changes: dict[str, Any]) -> list[Candidate]:
    return [Candidate(**{"row": 1, "id": "b", "text": "a blue car", **change}) for change in changes]


def test_a_refresh_is_shown_with_its_rows(tmp_path: Path) -> None:
    rows = {1: Row(prompt=(Message("user", ("What?",)),), chosen="a red car", id="b")}
    found = candidates({"lbar": -1.5}, {"text": "a red bus", "reason": "judged_right"})
    write_refresh(tmp_path, Refresh(number=1, step=0, epoch=0, seed=0, candidates=found))
    file = refresh_path(tmp_path, 1)
    assert is_refresh(file)
    page = write_negatives_page(
        file, tmp_path / "page.html", sampled_for=rows, weigh=lambda lbar: lbar / -3
    ).read_text()
    kept, dropped = cards(page)
    assert "a <ins>blue</ins> car" in kept
    assert 'data-lbar="-1.5" data-weight="0.5"' in kept
    assert "on_policy: judged_right" in dropped
    assert "data-lbar" not in dropped
    with pytest.raises(UserError, match="sampled for other rows"):
        write_negatives_page(file, tmp_path / "page.html", sampled_for={1: replace(rows[1], id="c")})
