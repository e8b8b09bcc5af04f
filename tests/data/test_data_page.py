"""Every row that docs/data.md shows is read with the right prompt, images and answers, written here by hand."""

import base64
import json
import re
from pathlib import Path

import pytest

from cwdpo.data.formats import format_of, row_from_record
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.rows import ImageSlot, Message

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
ROWS = [json.loads(line) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ROOT = Path(__file__).parent.resolve()
FORMATS = [
    *("trl", "flat", "trl-implicit", "trl", "hh", "trl-completion", "llava", "ms-swift", "llamafactory", "alpaca"),
    *("ms-swift", "ms-swift", "rlaif-v", "rlhf-v", "povid", "llava-rlhf", "vlfeedback", "trl", "trl", "trl", "trl"),
]
PNG = base64.b64decode("iVBORw0KGgo=")


def test_the_page_shows_each_form() -> None:
    assert [format_of(row) for row in ROWS] == FORMATS


@pytest.mark.parametrize("place", range(len(FORMATS)))
def test_rows_of_the_page(place: int) -> None:
    row = row_from_record(ROWS[place], source="page:1", roots=ImageRoots(ROOT, "/data"))
    assert row.prompt == (Message("user", (ImageSlot(), "What is it?")),)
    assert row.chosen == "A cat."
    rejected = {5: (), 6: (), 7: (), 16: ("A dog.", "A cow.")}.get(place, ("A dog.",))
    assert row.rejected == rejected
    image = {17: Path("/data/a.png"), 18: PNG, 19: PNG}.get(place, ROOT / "a.png")
    assert row.images == (image,)
    assert row.id == {12: "3", 13: "3", 14: "9", 15: "9", 16: "9"}.get(place, "")
