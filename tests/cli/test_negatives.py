"""``cwdpo negatives`` from the command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cwdpo.cli import app
from cwdpo.negatives.candidates import Candidate, Refresh, refresh_path, write_refresh

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "negatives", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"id": "a", "prompt": "What?", "chosen": "A red car.", "rejected": "No."},
        {"id": "b", "prompt": "What?", "chosen": "Whatever.", "rejected": "No."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gentle_says_what_it_did_and_what_it_could_not(run: Run, data: Path, tmp_path: Path) -> None:
    code, out, err = run("gentle", data, "--out", tmp_path / "out.jsonl", "--kinds", "colour")
    assert (code, out) == (0, f"wrote {tmp_path}/out.jsonl\n")
    assert "1 of 2 rows have a gentle negative." in err
    assert f"1 rows are kept without one, such as {data}:2." in err
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["gentle_edit"]["kind"] == "colour"


def test_coverage_as_json(run: Run, data: Path, tmp_path: Path) -> None:
    _, out, _ = run("gentle", data, "--out", tmp_path / "out.jsonl", "--json")
    found = json.loads(out)
    assert (found["rows"], found["without_gentle"]) == (2, 1)
    assert found["possible"] == {"object": 1, "colour": 1, "count": 1}


def test_mistakes_exit_with_2(run: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("gentle", data, "--out", out, "--kinds", "color")[::2] == (
        2,
        "'color' is not a kind of edit. Did you mean colour? Write one or more, with commas between them: object, "
        "colour, size, material, age, state, count, relation, action, order, yes_no, choice, number.\n",
    )
    for share in ("half", "0:0,0:1", "0:0,1", "2", "0:0:0,1:1:1"):
        code, _, err = run("mix", data, "--on-policy", data, "--out", out, "--fraction", share)
        assert code == 2
        assert err.startswith(f"--fraction is {share!r}, but must be a share from 0 to 1, such as 0.5, or poi")
    assert not out.exists()


def test_an_output_elsewhere_says_where_the_pictures_are(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    _, _, err = run("gentle", data, "--out", tmp_path / "new" / "out.jsonl")
    assert f"image paths in {tmp_path}/new/out.jsonl start at {tmp_path}." in err


def test_mix(run: Run, data: Path, tmp_path: Path) -> None:
    samples = tmp_path / "samples.jsonl"
    samples.write_text('{"id": "a", "negatives": ["Blue."]}\n{"id": "z", "negatives": ["Blue."]}\n')
    code, _, err = run(
        "mix", data, "--on-policy", samples, "--out", tmp_path / "out.jsonl", "--fraction", "0:0,1:1", "--progress", 1
    )
    assert code == 0
    assert "2 rows: 1 dataset, 1 on_policy; 1 rows had no sample." in err
    assert "1 id of the samples is no row's, such as z." in err


def test_show(run: Run, data: Path, tmp_path: Path) -> None:
    code, out, _ = run("show", data, "--out", tmp_path / "page.html")
    assert (code, out) == (0, f"wrote {tmp_path}/page.html\n")
    assert "Whatever." in (tmp_path / "page.html").read_text()


def test_show_refuses_to_replace_data(run: Run, data: Path, tmp_path: Path) -> None:
    before = data.read_bytes()
    code, _, err = run("show", data, "--out", data)
    assert (code, data.read_bytes()) == (2, before)
    assert err.startswith("--out names the data")


def test_show_a_refresh_of_a_run_and_without_it(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    recipe = "model: {name_or_path: m}\ndata: {train: ../rows.jsonl}\n"
    recipe += "stage2: {cooling: {floor: -2.0, temperature: 1.0}}\nseed: 0\n"
    (tmp_path / "run" / "recipe.yaml").write_text(recipe)
    found = [Candidate(1, "b", "Something.", lbar=-2.0), Candidate(0, "a", "A RED CAR", reason="right_but_for_form")]
    folder = tmp_path / "run" / "negatives"
    write_refresh(folder, Refresh(number=1, step=0, epoch=0, seed=0, candidates=found))
    code, _, err = run("show", refresh_path(folder, 1), "--out", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert 'data-lbar="-2.0" data-weight="0.5"' in page  # exactly at the floor
    assert page.index("A RED CAR") < page.index("Something.")
    (tmp_path / "run" / "recipe.yaml").unlink()
    assert run("show", refresh_path(folder, 1), "--out", tmp_path / "page.html")[0] == 2
    code, _, err = run("show", refresh_path(folder, 1), "--out", tmp_path / "page.html", "--data", data)
    assert code == 0, err
    assert "Something." in (tmp_path / "page.html").read_text()
    assert run("show", data, "--out", tmp_path / "page.html", "--data", data)[0] == 2


@pytest.mark.parametrize(
    ("floor", "message"), [("nan", "must be a number"), ("inf", "must be a number"), ("3", "Did you mean -3?")]
)
def test_impossible_floors_are_refused_before_a_model_loads(
    run: Run, data: Path, tmp_path: Path, floor: str, message: str
) -> None:
    words = ["filter", data, "--out", tmp_path / "out.jsonl", "--model", tmp_path / "none"]
    code, _, err = run(*words, "--drop-easier-than", floor)
    assert code == 2
    assert message in err


def test_a_filter_that_leaves_nothing_writes_nothing(run: Run, data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text().splitlines()[0] + "\n")
    code, _, err = run("filter", data, "--out", tmp_path / "out.jsonl", "--length-gap", "0.1")
    assert code == 2
    assert "no negative would be left (1 other_length)" in err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_filter_without_a_rule_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "What?", "chosen": "A cat.", "rejected": "A dog."}) + "\n"
    )
    code, _, err = run("filter", tmp_path / "rows.jsonl", "--out", tmp_path / "kept.jsonl")
    assert code == 0
    assert "note: no rule was given (--length-gap, --max-overlap)" in err
    assert "no rule" not in run("filter", tmp_path / "rows.jsonl", "--out", tmp_path / "k.jsonl", "--length-gap", 1)[2]
