"""``cwdpo audit`` on files of rows, and with a tiny model."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report.synthetic import stage1, write_lines
from support import disc_data

from cwdpo.cli import app
from cwdpo.report import write_report

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "audit", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def test_a_file_of_rows(run: Run, tmp_path: Path) -> None:
    data = disc_data.write(tmp_path, disc_data.records(40))
    code, out, err = run(data)
    assert (code, err) == (0, "")
    for words in (
        "40 pairs of 40 rows",
        "always the longer, words",
        "learned from words",
        "WARNING words: by words alone",
    ):
        assert words in out
    found = json.loads(run(data, "--json")[1])
    assert (found["model"], found["pairs"]) == (None, 40)
    assert {"name", "value", "low", "high", "n"} == found["shortcuts"][0].keys()
    assert found["warnings"][0].keys() == {"name", "evidence", "advice"}


def test_rows_without_rejected_answers_are_refused(run: Run, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "rejected"} for row in disc_data.records(2)]
    code, _, err = run(disc_data.write(tmp_path, rows))
    assert code == 2
    assert err == f"{tmp_path}/train.jsonl: no row has a rejected answer, so there are no pairs to audit.\n"


@pytest.mark.slow
def test_a_run_gets_the_audit_and_its_report_shows_it(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    import shutil
    from random import Random

    data = disc_data.write(tmp_path / "data", disc_data.records(12, text_only_every=4))
    done = tmp_path / "done"
    write_lines(done / "metrics.jsonl", stage1(20, Random(0)))
    (done / "recipe.yaml").write_text("stage1: {}\n")
    shutil.copytree(tiny("llava"), done / "stage1")
    code, out, err = run(data, done, "--rows", 8, "--batch-size", 3)
    assert code == 0, err
    assert "written: " in out
    kept = json.loads((done / "audit.json").read_text())
    shares = {one["name"]: one for one in kept["shortcuts"]}
    for view, n in (("its image", 8), ("no image", 8), ("a grey image", 6), ("another row's image", 6)):
        for unit in ("sum", "mean"):
            assert shares[f"model with {view}, {unit}"]["n"] == pytest.approx(n, abs=1)
    assert "always the longer, tokens" in shares
    page = write_report([done], tmp_path / "page.html").read_text()
    assert "Shortcuts in the data" in page
    assert "Model with no image, mean" in page
    assert run(data, done, "--rows", 2)[0] == 0  # the same data again
    code, _, err = run(disc_data.write(tmp_path / "other", disc_data.records(3)), done)
    assert code == 2
    assert "is an audit of other data" in err
    (done / "audit.json").write_text("{")
    assert "audit.json cannot be read" in write_report([done], tmp_path / "page.html").read_text()
    code, _, err = run(data, tiny("llava"), "--tokenizer", tiny("llava"))
    assert (code, "--tokenizer has no effect" in err) == (2, True)
