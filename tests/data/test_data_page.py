"""Every row that docs/data.md shows is read with the right prompt, images and answers, written here by hand."""

import base64
import copy
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data.formats import format_of, row_from_record
from cwdpo.data.image_roots import ImageRoots
from cwdpo.data.rows import ImageSlot, Message
from cwdpo.errors import DataError

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
ROWS = [json.loads(line) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ROOT = Path(__file__).parent.resolve()
FORMATS = [
    *("trl", "flat", "trl-implicit", "trl", "hh", "trl-completion", "llava", "ms-swift", "llamafactory", "alpaca"),
    *("ms-swift", "ms-swift", "rlaif-v", "rlhf-v", "povid", "llava-rlhf", "vlfeedback", "trl", "trl", "trl", "trl"),
]
PNG = base64.b64decode(re.findall(r"base64,([\w+/]+=*)", PAGE)[0])


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


def test_pictures_inside_the_rows_are_pictures() -> None:
    with Image.open(io.BytesIO(PNG)) as picture:
        picture.load()
        assert min(picture.size) >= 28  # which processors take
    assert "a whole path" in PAGE.partition('"file:///data/a.png"')[0]


JUNK: list[Any] = [
    *(None, "", "x", "<image>", "[]", "[{", "a" * 3000, "\ud800", "\0", "data:image/png;base64,zz", "../x", "http://x"),
    *(0, 1.5, -3, 10**400, True, False, float("nan"), float("inf"), b"x", object()),
    *([], {}, [None], [[[]]], ["x", "y"], {"a": 1}, {"role": ["user"], "content": ["x"]}, {"role": ["user"], "b": 1}),
    *({"role": "user"}, {"role": "assistant", "content": "q"}, {"type": "image"}, {"bytes": "x"}, {"Rating": "x"}),
    *("[{'role': 'user', 'content': 'x'", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman:\n\nAssistant:"),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def test_damaged_rows_are_read_or_refused_in_one_line() -> None:
    rng = random.Random(0)
    keys = sorted({str(key) for row in ROWS for place in places(row) for key in place})
    for _ in range(600):
        row = copy.deepcopy(rng.choice(ROWS))
        for _ in range(rng.randint(1, 3)):
            *way, last = rng.choice(places(row)[1:])
            owner = row
            for key in way:
                owner = owner[key]
            owner[last] = copy.deepcopy(rng.choice(JUNK))
            if isinstance(owner, dict):
                owner[rng.choice(keys)] = copy.deepcopy(rng.choice(JUNK))
        try:
            row_from_record(row, source="page:1", roots=ImageRoots(ROOT))
        except DataError as problem:
            message = str(problem)
            assert message.startswith("page:1: ")
            assert "\n" not in message
            assert len(message) < 700
