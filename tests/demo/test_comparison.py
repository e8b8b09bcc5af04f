"""The demo's table and gallery, on captions judged by eye."""

import json
from pathlib import Path

import pytest

from cwdpo.data.rows import ImageSlot, Message, Row
from cwdpo.demo.run import COLUMNS, Captions, HeldOut, format_table, judge_captions, make_gallery
from cwdpo.demo.world import Thing
from cwdpo.report.tables import comparison_table

RED = Thing("red", "disc", "small", "top left")
RIGHT, SIZE, COLOUR = (f"a {words} disc at the top left" for words in ("tiny red", "big red", "tiny pink"))
HELD_OUT = HeldOut(
    rows=[
        Row(prompt=(Message("user", (ImageSlot(),)),), chosen=RIGHT, images=(Path(f"{name}.png"),), id=name)
        for name in ("first", "second", "third", "fourth")
    ],
    scenes=[(RED,)] * 4,
)


def test_captions_are_judged() -> None:
    ours = Captions(greedy=[RIGHT, SIZE, COLOUR, COLOUR], sampled=[RIGHT, RIGHT, RIGHT, COLOUR])
    theirs = Captions(greedy=[SIZE, SIZE, RIGHT, RIGHT], sampled=[RIGHT, COLOUR, COLOUR, COLOUR])
    assert judge_captions(ours, theirs, HELD_OUT) == pytest.approx(
        {"exact": 0.25, "exact_sampled": 0.75, "hallucination": 0.5, "win": 1.5 / 4, "win_sampled": 3 / 4}
    )


def test_disputed_pictures_come_first() -> None:
    captions = {
        "A": Captions(greedy=[RIGHT, RIGHT, COLOUR, RIGHT], sampled=[]),
        "B": Captions(greedy=[RIGHT, SIZE, COLOUR, SIZE], sampled=[]),
    }
    gallery = make_gallery(captions, HELD_OUT, images="world/images", count=3)
    assert [entry["image"] for entry in gallery] == [
        f"world/images/{name}.png" for name in ("second", "fourth", "first")
    ]
    assert gallery[0]["answers"] == [
        {"name": "A", "text": RIGHT, "right": True},
        {"name": "B", "text": SIZE, "right": False},
    ]


def test_table_is_aligned_and_the_report_reads_it() -> None:
    numbers = {column["key"]: 0.5 for column in COLUMNS} | {"steps": 308}
    rows = [{"name": "CW-DPO", **numbers}, {"name": "base", **numbers, "tv": None, "exact": 0.612}]
    head, first, second = format_table(rows).splitlines()
    assert first.split() == ["CW-DPO", *["50.0%"] * 5, "+0.50", "+0.50", "0.500", "0.500", "308"]
    assert second.split()[1] == "61.2%"
    assert second.split()[-2] == "-"
    assert len(head) == len(first) == len(second)
    table = comparison_table(json.loads(json.dumps({"table": {"columns": COLUMNS, "rows": rows}})))
    assert table is not None
    assert [cell.text for cell in table.rows[0][1]] == first.split()[1:]
