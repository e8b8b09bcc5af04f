"""Answers token by token, and pictures: as they are when small, shrunk when large, refused with a note otherwise."""

import base64
import io
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report.markup import Page
from report.synthetic import draw_scene, example, write_examples, write_lines

from cwdpo.report import write_report
from cwdpo.report.examples import (
    MOST_EXAMPLES,
    MOST_ITEMS,
    ExampleSet,
    Item,
    Token,
    change_labels,
    example_sets,
    mark,
    read_gallery,
    read_tokens,
    shade,
    shade_labels,
)
from cwdpo.report.runs import read_sources


def run(path: Path, *stages: str) -> Path:
    lines = [{"stage": stage, "step": 1, "loss": 1.0} for stage in stages or ("stage2",)]
    write_lines(path / "metrics.jsonl", lines)
    return path


def read(path: Path) -> tuple[list[ExampleSet], list[str]]:
    notes: list[str] = []
    runs = [run for source in read_sources([path], notes) for run in source.runs]
    return example_sets(runs, notes), notes


def test_means_changes_and_margins_by_hand(tmp_path: Path) -> None:
    answers = [
        {"group": "rejected", "text": "c", "tokens": ["c"], "start": [-4.0], "end": [-5.0]},
        {"group": "chosen", "text": "ab", "tokens": ["a", "b"], "start": [-1.0, -2.0], "end": [-0.5, -1.5]},
        {"group": "gentle", "text": "ac", "tokens": ["a", "c"], "start": [-1.0, -2.0], "end": [-1.0, -3.0]},
    ]
    lines = [{"row": "r", "pictures": [], "prompt": "p", "answers": answers[: 1 + i]} for i in (2, 1, 0)]
    write_lines(run(tmp_path) / "probes/stage2/examples.jsonl", lines)
    ((found,), notes) = read(tmp_path)
    full, without_gentle, without_chosen = found.examples
    assert [(a.group, a.end, a.change) for a in full.answers] == [
        ("chosen", -1.0, 0.5),
        ("gentle", -2.0, -0.5),
        ("rejected", -5.0, -1.0),
    ]
    assert (full.margin, without_gentle.margin, without_chosen.margin) == (1.0, 4.0, None)
    assert notes == []


def test_the_same_answer_before_and_after_is_shown_once(tmp_path: Path) -> None:
    line = example("r", "", "red", {})
    line["answers"][-1]["text"] = line["answers"][-2]["text"]
    write_lines(run(tmp_path) / "probes/stage2/examples.jsonl", [line, example("s", "", "red", {})])
    ((found,), _) = read(tmp_path)
    assert [a.label for a in found.examples[0].answers][-1] == "The model when the stage began and ended"
    assert [a.group for a in found.examples[0].answers] == ["chosen", "gentle", "rejected", "greedy"]
    assert [a.group for a in found.examples[1].answers][-2:] == ["greedy", "greedy_end"]


@pytest.mark.parametrize(
    ("probability", "level"),
    [(1.0, 0), (0.96, 0), (0.94, 1), (0.89, 2), (0.74, 3), (0.49, 4), (0.24, 5), (0.09, 6), (0.04, 7), (0.009, 8)],
)
def test_shades_are_probabilities(probability: float, level: int) -> None:
    assert shade(math.log(probability)) == level
    assert len(shade_labels()) == 9


def test_marks_tell_falls_from_rises() -> None:
    assert [mark(c) for c in (-3.1, -1.1, -0.3, -0.06, -0.04, 0, 0.04, 0.06, 0.3, 1.1, 3.1)] == (
        ["f4", "f3", "f2", "f1", "r0", "r0", "r0", "r1", "r2", "r3", "r4"]
    )
    assert [style for style, _ in change_labels()] == ["f4", "f3", "f2", "f1", "r0", "r1", "r2", "r3", "r4"]


def test_the_change_of_a_token_is_end_less_start() -> None:
    found = read_tokens({"tokens": ["a", "\n"], "start": [-1.0, -2.5], "end": [-3.0, -0.5]})
    assert found == [Token("a", -3.0, -2.0), Token("↵\n", -0.5, 2.0)]
    assert [token.classes for token in found] == ["s7 f3", "s3 r3"]  # e^-3 is under 5 %, e^-0.5 is 61 %


def test_a_token_says_its_numbers() -> None:
    assert Token("a", math.log(0.5), -0.25).title == "log-prob -0.69 (50 %), -0.25 since the stage began"
    assert Token("a", -10.0, None).title == "log-prob -10.00 (0.005 %)"
    assert Token("a", -10.0, None).classes == "s8"


@pytest.mark.parametrize(
    "entry",
    [
        {"tokens": ["a"], "end": [-1.0, -2.0]},
        {"tokens": "a", "end": [-1.0]},
        {"tokens": ["a"], "end": [None]},
        {"tokens": ["a"], "end": 3},
        {"tokens": ["a"], "end": [-1.0], "start": [-1.0, 2.0]},
        {"tokens": ["a"], "end": [-1.0], "start": "x"},
    ],
)
def test_lists_that_do_not_fit_are_refused(entry: dict[str, Any]) -> None:
    assert read_tokens(entry) is None


def test_broken_files_are_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    draw_scene(tmp_path / "secret.png", "red")
    folder = run(tmp_path / "mine") / "probes/stage2"
    bad = {"group": "chosen", "text": "ab", "tokens": ["a"], "end": [-1.0, -2.0]}
    lines = [
        {"row": 3, "pictures": ["../../../secret.png", "none.png"], "prompt": None, "answers": [bad, 7]},
        {"row": None, "pictures": 3, "answers": 4},
    ]
    write_lines(folder / "examples.jsonl", lines)
    with (folder / "examples.jsonl").open("a") as file:
        file.write('{"row": ')
    ((found,), notes) = read(tmp_path / "mine")
    assert [len(e.answers) for e in found.examples] == [1, 0]
    assert found.examples[0].answers[0].text == "ab"
    assert [e.pictures for e in found.examples] == [[], []]
    assert len(notes) == 4
    assert "1 line could not be read" in notes[0]
    assert any("leaves the run directory" in note for note in notes)
    assert str(tmp_path) not in " ".join(notes)


def test_rows_left_out_are_counted(tmp_path: Path) -> None:
    lines = [example(str(i), "", "red", {}) for i in range(MOST_EXAMPLES + 1)]
    write_lines(run(tmp_path) / "probes/stage2/examples.jsonl", lines)
    ((found,), notes) = read(tmp_path)
    assert len(found.examples) == MOST_EXAMPLES
    assert f"the first {MOST_EXAMPLES} of {MOST_EXAMPLES + 1} rows" in notes[0]


def test_where_fewer_rows_are_shown_than_were_probed_the_page_says_so_and_why(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"stage": "stage2", "step": 1, "loss": 0.5}])
    write_lines(tmp_path / "probes/stage2/examples.jsonl", [example("0", "", "red", {})])
    probed = {"stage": "stage2", "step": 0, "group": "chosen", "delta": 0.0}
    write_lines(tmp_path / "probes.jsonl", [{**probed, "n": 4}])
    few = Page(write_report([tmp_path], tmp_path / "few.html").read_text("utf-8")).prose
    write_lines(tmp_path / "probes.jsonl", [{**probed, "n": 1}])
    every = Page(write_report([tmp_path], tmp_path / "all.html").read_text("utf-8")).prose
    assert "stage 2: 1 of 4 rows" in few
    assert "in a short run fewer" in few
    assert "stage 2: 1 row " in every
    assert "in a short run fewer" not in every


def test_only_the_last_stage_is_open_at_first(tmp_path: Path) -> None:
    run(tmp_path, "stage1", "stage2")
    for stage in ("stage1", "stage2"):
        write_lines(tmp_path / "probes" / stage / "examples.jsonl", [example("r", "", "red", {})])
    page = Page(write_report([tmp_path], tmp_path / "a.html").read_text("utf-8"))
    sets = [a for a in page.attributes("details") if a["data-key"].startswith("examples")]
    assert ["open" in a for a in sets] == [False, True]


def test_hostile_rows_stay_text(tmp_path: Path) -> None:
    hostile = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>\ud800'
    folder = run(tmp_path) / "probes/stage2"
    entry = {"group": hostile, "text": hostile, "tokens": [hostile, "\n"], "start": [-1.0, -1.0], "end": [-2.0, -1.0]}
    line = {"row": hostile, "pictures": [hostile], "prompt": hostile, "answers": [entry, {**entry, "tokens": None}]}
    folder.mkdir(parents=True)
    (folder / "examples.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report([tmp_path], tmp_path / "a.html").read_text("utf-8"))
    assert page.misnested == []
    assert len(page.attributes("script")) == 1
    assert page.attributes("img") == []
    assert not [name for _, a in page.tags for name in a if name.startswith("on") or name == "style"]
    assert hostile.replace("\ud800", "?") in page.text_of("span")


def test_pictures_stand_in_the_page(tmp_path: Path) -> None:
    write_examples(run(tmp_path))
    page = Page(write_report([tmp_path], tmp_path / "a.html").read_text("utf-8"))
    assert [a["alt"] for a in page.attributes("img")] == ["picture 1 of row red", "picture 1 of row blue"]
    cards = [a for a in page.attributes("article") if "data-place" in a]
    assert [float(a["data-chosen"]) for a in cards] == pytest.approx([-0.3, -0.9, -1.5])
    assert [float(a["data-margin"]) for a in cards] == pytest.approx([0.2, 2.1, -0.1])
    assert [float(a["data-change"]) for a in cards] == pytest.approx([0.2, 0.2, 0.2])


def gallery(directory: Path, *images: Any) -> tuple[list[Item], list[str]]:
    notes: list[str] = []
    return read_gallery(directory, {"gallery": [{"image": image} for image in images]}, notes), notes


def test_photo_is_shrunk(tmp_path: Path) -> None:
    noise = Image.frombytes("RGB", (800, 400), os.urandom(800 * 400 * 3))
    noise.save(tmp_path / "photo.png")
    (item,), notes = gallery(tmp_path, "photo.png")
    assert notes == []
    assert item.image is not None
    shown = Image.open(io.BytesIO(base64.b64decode(item.image.split(",")[1])))
    assert (shown.size, item.small) == ((320, 160), False)


def test_small_file_of_many_pixels_is_shrunk_too(tmp_path: Path) -> None:
    Image.new("L", (4000, 4000)).save(tmp_path / "flat.png")
    (item,), _ = gallery(tmp_path, "flat.png")
    assert item.image is not None
    assert item.image.startswith("data:image/jpeg;base64,")


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (run / "link.png").symlink_to(tmp_path / "outside.png")
    (run / "text.png").write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3)).save(tmp_path / "whole.png")
    (run / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    os.mkfifo(run / "pipe.png")
    bad = ["../outside.png", "link.png", "text.png", "half.png", "pipe.png", "none.png", "\0", ""]
    items, notes = gallery(run, *bad)
    assert [item.image for item in items] == [None] * len(bad)
    assert len(notes) == len(bad)
    assert all("run: the picture" in note for note in notes)
    assert not [note for note in notes if str(run) in note]


def test_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (12, 12)).save(tmp_path / "warned.png")  # between once and twice the limit Pillow only warns
    (item,), notes = gallery(tmp_path, "warned.png")
    assert item.image is None
    assert "exceeds limit" in notes[0]


def test_broken_chunk_is_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[content.index(b"IDAT") :] = b"I\0AT" + zlib.compress(b"x")
    (tmp_path / "a.png").write_bytes(content)
    (item,), notes = gallery(tmp_path, "a.png")
    assert item.image is None
    assert len(notes) == 1


def test_row_without_a_picture_is_no_mistake(tmp_path: Path) -> None:
    (item,), notes = gallery(tmp_path, None)
    assert item.image is None
    assert notes == []


def test_pictures_left_out_are_counted(tmp_path: Path) -> None:
    items, notes = gallery(tmp_path, *[None] * (MOST_ITEMS + 2))
    assert len(items) == MOST_ITEMS
    assert "2 more pictures" in notes[0]


@pytest.mark.parametrize("broken", [None, 3, "x", {"image": "a"}, [1, "x", None]])
def test_broken_gallery_shows_nothing(tmp_path: Path, broken: Any) -> None:
    assert read_gallery(tmp_path, {"gallery": broken}, []) == []
