"""``cwdpo init`` from outside: from rows and a model to a recipe that checks and trains without an edit."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import disc_data

from cwdpo.cli import app
from cwdpo.records import read_jsonl

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in a folder with rows of its own; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    rows = disc_data.records(12)
    for row in rows:
        del row["gentle"]
    disc_data.write(tmp_path / "data", rows)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            app.main()
        except SystemExit as left:
            code = left.code or 0
        printed = capsys.readouterr()
        return int(str(code)), printed.out, printed.err

    return call


@pytest.mark.slow
def test_three_commands_give_a_model_a_report_and_a_card(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    code, out, err = run("init", "data/train.jsonl", "--model", tiny("llava"))
    assert code == 0
    assert "written: recipe.yaml  (12 rows)" in out
    assert "cwdpo negatives gentle data/train.jsonl --out data/train_gentle.jsonl" in err
    code, out, _ = run("check", "recipe.yaml")
    assert code == 0
    assert "memory, this recipe" in out
    assert "fits: " in out
    code, out, _ = run("train", "recipe.yaml")
    assert code == 0
    for words in (
        "model    ",
        "LoRA of rank 16",
        "rows     12; probes ask about ",
        "memory   about ",
        "output   runs/",
    ):
        assert words in out
    directory = tmp_path / yaml.safe_load((tmp_path / "recipe.yaml").read_text())["output_dir"]
    for name in ("stage1/adapter_config.json", "stage2/adapter_config.json", "report.html", "stage2/README.md"):
        assert (directory / name).is_file()
    steps = {line["stage"]: line["step"] for line in read_jsonl(directory / "metrics.jsonl").objects}
    announced = re.findall(r"^(stage\d)   .* rows, (\d+) steps? of", out, re.MULTILINE)
    assert {stage: int(number) for stage, number in announced} == steps


def test_another_tools_file_is_carried_over(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    theirs = {"model_name_or_path": str(tiny("llava")), "use_peft": True, "lora_r": 4, "beta": 0.3, "bf16": True}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(theirs))
    code, out, err = run("init", "data/train.jsonl", "--from", "trl.yaml", "--out", "-")
    assert code == 0
    found = yaml.safe_load(out)
    assert found["model"]["lora"]["r"] == 4
    assert found["stage2"]["beta"] == 0.3
    assert "bf16 (there is no GPU here" in err
    assert not (tmp_path / "recipe.yaml").exists()
    code, _, err = run("train", "trl.yaml")
    assert code == 2
    assert err.startswith("trl.yaml: this is a configuration of TRL")
    assert err.count("\n") == 1


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    code, _, err = run("init", "data/train.jsonl", "--model", "m")
    assert (code, err) == (
        2,
        "recipe.yaml exists already, and nothing is overwritten. Give another --out, or remove it.\n",
    )
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert run("init", "--model", "m")[2].startswith("no rows. Name a file first")  # that comes first


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data/train.jsonl"], "no model. Add --model"),
        (["--model", "m"], "no rows. Name a file first: cwdpo init DATA --model MODEL."),
        (["--from", "trl dpo --model_name_or_path m --dataset_name a/b"], "trains on 'a/b', which is not a file here"),
        (["data/train.jsonl", "--model", "m", "--out", "no/r.yaml"], "there is no directory no. Make it"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_loaded(run: Run, words: list[str], expected: str) -> None:
    code, _, err = run("init", *words)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_held_out_rows_are_checked_too(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    code, _, err = run("init", "data/train.jsonl", "--model", tiny("llava"), "--eval", "data/trian.jsonl")
    assert (code, err) == (2, "data/trian.jsonl: no such file. Did you mean data/train.jsonl?\n")
    assert not (tmp_path / "recipe.yaml").exists()


def test_rows_that_stop_training_are_named(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    (tmp_path / "data" / "3.png").unlink()
    (tmp_path / "data" / "5.png").unlink()
    code, _, err = run("init", "data/train.jsonl", "--model", tiny("llava"))
    assert code == 2
    assert err.startswith("data/train.jsonl:4:")
    assert "1 more thing would stop training: `cwdpo check data/train.jsonl`." in err
    assert not (tmp_path / "recipe.yaml").exists()
