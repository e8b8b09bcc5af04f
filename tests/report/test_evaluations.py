"""What an evaluation looks like on the page: every number of its file, and nothing of one that cannot be read."""

import json
import random
from pathlib import Path

import pytest
from report.markup import Page
from report.synthetic import EVALUATION, measure, stage2, write_lines

from cwdpo.report import write_report
from cwdpo.report.live import _files_of
from cwdpo.report.page import render_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_lines(tmp_path / "mine/metrics.jsonl", stage2(20, random.Random(0), cooled=True))
    return tmp_path / "mine"


def page(run: Path, **files: object) -> Page:
    for name, content in files.items():
        (run / f"{name.replace('_', '-')}.json").write_text(
            content if isinstance(content, str) else json.dumps(content)
        )
    return Page(write_report([run], run.parent / "page.html").read_text("utf-8"))


def section(found: Page) -> str:
    begin = found.prose.index("Did it help? Measured by")
    return found.prose[begin : found.prose.index("Training", begin)]


def test_every_number_is_there(run: Path) -> None:
    found = page(run, evaluation=EVALUATION)
    assert found.misnested == []
    text = section(found)
    for words in (
        "40 rows of held_out.jsonl, beside base",
        "Better beyond chance: the match.",
        "the match \u2191 better 0.400 0.500 +0.100 [+0.050, +0.150] yes, better",
        "the tv 1e-04 [0.250, 0.750]",
        "ECE of tokens: base 0.250, model 0.500.",
        "Not measured: yes or no (no row's chosen answer is yes or no).",
    ):
        assert words in text
    assert "someone" not in text
    kinds = [a["class"] for a in found.attributes("circle") if a["class"] in ("first", "last")]
    assert kinds == ["first", "first", "last"]
    assert ("#evaluation", "Did it help?") in zip(
        [a.get("href") for a in found.attributes("a")], found.text_of("a"), strict=False
    )


def test_a_model_alone_has_no_column_for_the_base(run: Path) -> None:
    alone = {**EVALUATION, "against": None, "measures": [measure("match", "answers", 0.5)], "reliability": {}}
    text = section(page(run, evaluation=alone))
    assert "Measure Model 95 % interval Answers the match \u2191 better 0.500 [0.250, 0.750]" in text
    assert "Base" not in text
    assert "beside" not in text


def test_several_evaluations_stand_in_their_order(run: Path) -> None:
    files = {f"evaluation_{n}": {**EVALUATION, "rows": n} for n in (10, 2)}
    text = section(page(run, evaluation=EVALUATION, **files))
    assert text.index(": 40 rows of") < text.index(": 2 rows of") < text.index(": 10 rows of")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"measures": [{"name": "x", "value": "high"}]}'])
def test_a_file_that_cannot_be_read_is_noted(run: Path, content: str) -> None:
    found = page(run, evaluation=content)
    assert "mine: evaluation.json cannot be read and was left out." in found.prose
    assert "Did it help?" not in found.prose


def test_odd_values_break_nothing(run: Path) -> None:
    odd = measure("match", "answers", 0.5, base=3, difference={"value": None}, verdict=7, better="left", label="<b>")
    text = section(page(run, evaluation={"measures": [odd], "skipped": [], "reliability": [], "question": 3}))
    assert "<b>" in text
    assert "? [?, ?]" in text
    assert "? rows of unknown data" in text


def test_the_page_that_follows_a_run_notices_an_evaluation(run: Path) -> None:
    before = list(_files_of([run]))
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    assert {*_files_of([run])} - {*before} == {run / "evaluation.json"}
    assert "Did it help?" in render_report([run])
