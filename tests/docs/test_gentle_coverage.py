"""The figures of docs/negatives.md are those of the code, and the edits that were read are those that it makes."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from cwdpo.negatives.offline_generation import PROMPT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "negatives.md").read_text("utf-8")


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / "tests" / "negatives" / name).read_text("utf-8").splitlines()]


READ, READ_HELD_OUT = lines("reading.jsonl"), lines("held_out_reading.jsonl")


def script() -> Any:
    spec = spec_from_file_location("gentle_coverage", ROOT / "docs" / "gentle_coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sets() -> dict[str, list[str]]:
    made = script()
    return {"captions": made.captions(), "emoji names": made.emoji(), "drawn scenes": made.scenes()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captions", "emoji names", "drawn scenes"])
def test_the_edits_that_were_read_are_those_of_the_code(name: str) -> None:
    texts = sets()[name]
    if not texts:
        pytest.skip("the emoji names need Debian's packages; see make emoji")
    read = [{key: edit[key] for key in ("set", "chosen", "gentle", "kind")} for edit in READ if edit["set"] == name]
    assert read == script().sample(name, texts)


def test_so_are_those_of_the_captions_held_out() -> None:
    read = [{key: edit[key] for key in ("set", "chosen", "gentle", "kind")} for edit in READ_HELD_OUT]
    assert read == script().held_out()


@pytest.mark.slow
def test_the_table_is_that_of_the_code() -> None:
    found = sets()
    if not found["emoji names"]:
        pytest.skip("the emoji names need Debian's packages; see make emoji")
    assert script().table(found) in PAGE


@pytest.mark.parametrize(("read", "number"), [(READ, 100), (READ_HELD_OUT, 78)])
def test_the_verdicts_are_those_of_the_page(read: list[dict[str, str]], number: int) -> None:
    wrong, fluent = (sum(edit[key] == "yes" for edit in read) for key in ("wrong", "fluent"))
    assert len(read) == number
    assert f"{wrong} are clearly wrong answers, {fluent} read naturally" in " ".join(PAGE.split())
    assert all("note" in edit for edit in read if edit["wrong"] != "yes" or edit["fluent"] != "yes")


def test_the_page_has_the_question_to_the_server() -> None:
    assert f"```text\n{PROMPT}\n```" in PAGE
