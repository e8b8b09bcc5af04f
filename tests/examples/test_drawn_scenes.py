"""The drawn-scenes example: the whole measurement on a few rows, and its counts by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cwdpo.data.rows import Row
from cwdpo.demo.plans import DemoSettings
from cwdpo.negatives.filtering import Rules
from examples.drawn_scenes import on_policy, stopping

pytestmark = pytest.mark.slow

SETTINGS = replace(DemoSettings.small(), train_rows=64, eval_rows=8, batch_size=8, stage1_steps=2, stage2_steps=4)


def test_a_seed_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DemoSettings, "small", lambda: SETTINGS)
    monkeypatch.setattr(sys, "argv", ["on_policy.py", "--out", str(tmp_path / "out"), "--seeds", "5", "--small"])
    on_policy.main()
    measured = json.loads((tmp_path / "out/seed-5/measured.json").read_text())
    assert set(measured["runs"]) == {f"{m}, {n}" for m in ("DPO", "CW-DPO") for n in ("on-policy", "curriculum")}
    for name, run in measured["runs"].items():
        kept = sum(counts["kept"] for counts in run["counts"])
        assert run["rules"]["and the truth"] | {"right": 0, "passed": kept} == run["rules"]["and the truth"]
        text = run["rules"]["text rules"]
        assert text["passed"] - text["right"] == kept  # the judge dropped just those
        assert 0 < run["share"] < 1
        assert bool(run["levels"]) == name.endswith("curriculum")
    assert "mean of the seeds 5" in capsys.readouterr().out
    before = (tmp_path / "out/seed-5/measured.json").stat().st_mtime_ns
    on_policy.main()  # what is measured is not measured again
    assert (tmp_path / "out/seed-5/measured.json").stat().st_mtime_ns == before


def test_what_slips_through_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Row(prompt=(), chosen="a red disc", id=str(i)) for i in range(4)]
    texts = ["a red disc", "red circle", "a blue disc", "green"]

    def truth(asked: Any, answers: Any) -> list[bool]:
        return [answer in ("a red disc", "red circle") for answer in answers]

    monkeypatch.setattr(on_policy, "right_captions", truth)
    samples = list(zip(rows, texts, strict=True))
    assert on_policy._let_through(samples, Rules(), None, rows) == {
        "samples": 4, "passed": 3, "right": 1, "wrong": 2, "wrong_dropped": 0
    }  # fmt: skip
    short = on_policy._let_through(samples, Rules(), lambda r, a: [len(x) < 6 for x in a], rows)
    assert (short["passed"], short["right"], short["wrong_dropped"]) == (2, 1, 1)


def test_stopping_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DemoSettings, "small", lambda: SETTINGS)
    monkeypatch.setattr(stopping, "EVERY", 2)
    monkeypatch.setattr(sys, "argv", ["stopping.py", "--out", str(tmp_path / "out"), "--seeds", "5", "--small"])
    stopping.main()
    (measured,) = json.loads((tmp_path / "out/stopping.json").read_text())["seeds"]
    assert list(measured["dpo_exact_by_step"]) == ["0", "2", "4"]
    assert set(measured["findings"]) == {"DPO", "SFT", "CW-DPO"}
    assert measured["stopped_at"] is None  # four steps are too few to judge
    assert measured["stopped_exact"] == measured["dpo_exact_by_step"]["4"]  # so it is the same run
    assert "seed 5: DPO peaks at" in capsys.readouterr().out
