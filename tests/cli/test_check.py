"""``cwdpo check`` on real files and a tiny model of a real class."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.cli import app

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "check", *map(str, words)])
        capsys.readouterr()  # drops what building the tiny model printed
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return call


def written(folder: Path, *extra: dict[str, Any]) -> Path:
    Image.new("RGB", (56, 56), "red").save(folder / "a.png")
    row = {"image": "a.png", "prompt": "what color?", "chosen": "red", "rejected": "blue", "gentle": "reddish"}
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in [row, *extra]))
    return path


def test_good_rows_exit_0(run: Run, tmp_path: Path) -> None:
    code, out, err = run(written(tmp_path))
    assert (code, err) == (0, "")
    assert "1 usable of 1" in out
    assert "Nothing stops training." in out


def test_findings_exit_1_and_name_the_line(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(written(tmp_path, {"image": "b.png", "prompt": "x", "chosen": "a", "rejected": "b"}))
    assert code == 1
    assert f"STOPS TRAINING: {tmp_path}/rows.jsonl:2: image" in out


def test_only_the_first_problems_are_printed(run: Run, tmp_path: Path) -> None:
    bad = [{"prompt": "x", "chosen": ""}] * 13
    code, out, _ = run(written(tmp_path, *bad))
    assert code == 1
    assert out.count("STOPS TRAINING: ") == 11
    assert "and 3 more (3 unusable_row). --json lists all." in out


def test_a_file_that_cannot_be_read_at_all_exits_2(run: Run, tmp_path: Path) -> None:
    code, out, err = run(tmp_path / "nothing.jsonl")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "nothing.jsonl" in err


def test_a_model_adds_tokens_targets_and_memory(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    rows, model = written(tmp_path), tiny("qwen2_5_vl")
    code, out, _ = run(rows, "--model", model)
    assert code == 0
    for expected in ("token budget", "LoRA, r 16", "q_proj", "memory, LoRA", "vision tower"):
        assert expected in out
    code, out, err = run(rows, "--model", model, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    facts = found["model"]
    assert found["ok"] is True
    assert found["rows"][0]["image_tokens"] > 0
    assert all(".language_model." in name for name in facts["lora"]["targets"])
    full, lora = facts["memory"]["full"], facts["memory"]["lora"]
    weights = sum(part["total"] for part in facts["parts"].values())
    assert full["weights"] == 4 * weights
    assert lora["weights"] == 4 * (weights + facts["lora"]["weights"])
    assert lora["gradients"] == 4 * facts["lora"]["weights"]


def test_the_models_limit_is_a_finding(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    rows = written(tmp_path, {"prompt": "x", "chosen": "red " * 2000, "rejected": "b"})
    code, out, _ = run(rows, "--model", tiny("qwen2_5_vl"), "--json")
    assert code == 1
    assert [finding["name"] for finding in json.loads(out)["findings"]] == ["too_long"]


def test_a_model_that_is_none_exits_2(run: Run, tmp_path: Path) -> None:
    code, out, err = run(written(tmp_path), "--model", tmp_path)
    assert (code, out) == (2, "")
    assert "has no config.json" in err
