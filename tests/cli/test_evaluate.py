"""``cwdpo evaluate`` on tiny checkpoints: the table, the file, and what it says of bad input."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support import disc_data
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.cli.evaluate import words_of
from cwdpo.cli.progress import ProgressLines
from cwdpo.errors import UserError
from cwdpo.evaluation.questions import read_questions
from cwdpo.evaluation.run import Settings, _warn_of_training_rows
from cwdpo.records import RunDirectory


def cwdpo(*words: object) -> str:
    done = CliRunner().invoke(app, ["evaluate", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def rows() -> list[dict[str, Any]]:
    """Open rows, and of each closed kind some."""
    found = disc_data.records(16)
    for i in (0, 1, 2):
        found[i] |= {"prompt": f"Is it {i}?", "chosen": "Yes." if i else "No."}
    for i in (3, 4):
        found[i] |= {"prompt": "Which?\nA. red\nB. blue", "chosen": "B"}
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_data.write(tmp_path_factory.mktemp("data"), rows())


@pytest.fixture(scope="module")
def tuned(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny LLaVA with another output head."""
    directory = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(tiny("llava"), directory)
    weights = load_file(directory / "model.safetensors")
    head = next(name for name in weights if "lm_head" in name)
    weights[head] += torch.randn(weights[head].shape, generator=torch.Generator().manual_seed(0))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def run(tmp_path: Path, tuned: Path, tiny: Callable[[str], Path]) -> Path:
    """What a run leaves, with the tuned model as its last stage."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "stage1").symlink_to(tiny("llava"))
    (directory / "stage2").symlink_to(tuned)
    recipe = {"model": {"name_or_path": str(tiny("llava"))}, "data": {"train": "x.jsonl"}, "stage1": {}, "stage2": {}}
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return directory


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in found["measures"]}


@pytest.mark.slow
def test_a_run_is_compared_with_what_it_started_from(run: Path, data: Path, tiny: Callable[[str], Path]) -> None:
    said = cwdpo(run, "--data", data, "--max-new-tokens", 4)
    found = json.loads((run / "evaluation.json").read_text())
    assert f"written: {run / 'evaluation.json'}" in said
    assert found["rows"] == 16
    assert found["against"] == str(tiny("llava"))
    assert found["question"]["model"] == "stage2"
    measured = by_name(found)
    assert measured["yes_no_accuracy"]["n"] == 3
    assert measured["choice_logprob"]["n"] == measured["choice_generated"]["n"] == 2
    assert measured["bleu_4"]["n"] == 11
    assert measured["drift_kl"]["value"] > 0.1
    chosen = measured["logprob_chosen"]
    assert chosen["difference"]["value"] == pytest.approx(chosen["value"] - chosen["base"]["value"])
    assert chosen["verdict"] == "worse"
    assert [row["chosen"] for row in found["answers"]][:4] == ["No.", "Yes.", "Yes.", "B"]
    assert {len(found["reliability"][name]) for name in ("model", "base")} == {15}
    for words in (
        "16 rows, beside",
        "log-prob of chosen",
        "yes, worse",
        "METEOR and SPICE",
        "Worse beyond chance: log-prob",
    ):
        assert words in said
    assert found["words"].startswith("Worse beyond chance: log-prob of chosen (nats/token)")


def test_rows_that_were_trained_on_are_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    trained, held_out = disc_data.records(6), disc_data.records(8)[4:]
    disc_data.write(tmp_path / "data", disc_data.records(8))
    disc_data.write(tmp_path / "data", trained, "x.jsonl")
    disc_data.write(tmp_path / "data", held_out, "held.jsonl")
    recipe = run / "recipe.yaml"
    settings = Settings(model=str(run), data=Path("data/held.jsonl"))
    rows = [question.row for question in read_questions(settings.data)]
    _warn_of_training_rows(settings, rows)  # the recipe's rows are gone
    assert not caplog.records
    recipe.write_text(recipe.read_text().replace("x.jsonl", str(tmp_path / "data" / "x.jsonl")))
    _warn_of_training_rows(settings, rows[2:])
    assert not caplog.records
    _warn_of_training_rows(settings, rows)
    said = "2 of 4 rows were trained on, so they are not held out: the first is data/held.jsonl:1"
    assert said in caplog.text


def test_the_same_again_is_replaced_and_another_question_has_its_own_file(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(settings: Any, progress: object) -> dict[str, Any]:
        nothing: dict[str, Any] = {"against": None, "rows": 3, "measures": [], "skipped": {}, "words": "Nothing."}
        return {"question": settings.question(), **nothing}

    monkeypatch.setattr("cwdpo.evaluation.run.evaluate_model", measured)
    short = ("--data", data, "--no-generate", "--rows", 3)
    assert "written: " in cwdpo(run, *short)
    assert "replaced, as the same was asked before: " in cwdpo(run, *short)
    for number, words in ((2, ("--seed", 1)), (3, ("--seed", 2))):
        assert f"written: {run / f'evaluation-{number}.json'}" in cwdpo(run, *short, *words)
    assert "replaced" in cwdpo(run, *short, "--seed", 1)
    assert sorted(path.name for path in run.glob("*.json")) == [f"evaluation{end}.json" for end in ("-2", "-3", "")]
    elsewhere = run / "mine.json"
    assert f"written: {elsewhere}" in cwdpo(run, *short, "--out", elsewhere)
    with pytest.raises(UserError, match=r"mine.json exists already and is not this evaluation"):
        cwdpo(run, *short, "--seed", 3, "--out", elsewhere)


@pytest.mark.slow
def test_a_model_beside_itself_differs_in_nothing(tiny: Callable[[str], Path], data: Path) -> None:
    model = tiny("llava")
    found = json.loads(cwdpo(model, "--data", data, "--against", model, "--no-generate", "--json"))
    for one in found["measures"]:
        if one["difference"] is not None:
            assert [one["difference"][key] for key in ("value", "low", "high")] == [0, 0, 0]
    assert by_name(found)["drift_tv"]["value"] == pytest.approx(0, abs=1e-6)
    assert by_name(found)["reward_accuracy"]["value"] == 0.5
    assert found["words"] == "No difference beyond chance in 8 measures."


@pytest.mark.slow
def test_a_model_alone(tiny: Callable[[str], Path], data: Path) -> None:
    said = cwdpo(tiny("llava"), "--data", data, "--no-generate", "--rows", 4)
    assert "4 rows" in said
    assert "beside" not in said
    assert "Nothing to compare with: name a base with --against." in said
    assert "written" not in said


@pytest.mark.slow
def test_objects(tiny: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    (tmp_path / "objects.txt").write_text("disc, circle\nmarket\n")
    found = json.loads(
        cwdpo(tiny("llava"), "--data", data, "--vocabulary", tmp_path / "objects.txt", "--max-new-tokens", 2, "--json")
    )
    assert by_name(found)["object_recall"]["value"] == 0
    assert "chair_i" in found["skipped"]  # nothing was named


@pytest.mark.slow
def test_a_base_that_is_gone_is_said(run: Path, data: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"]["name_or_path"] = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = cwdpo(run, "--data", data, "--no-generate", "--rows", 2)
    assert "is gone, so there is no base to compare with" in caplog.text
    assert "Nothing to compare with" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "missing.jsonl"), r"missing.jsonl: no such file. Write a .jsonl, .json, "),
        ((), "no rows to evaluate on. Add --data ROWS"),
        (("--data", "DATA", "--tasks", "pope"), "--tasks has no effect without --harness"),
        (("--data", "DATA", "--vocabulary", "EMPTY"), "empty.txt: holds no object"),
        (("--data", "DATA", "--vocabulary", "none.txt"), "none.txt: no such file"),
        (("--data", "DATA", "--vocabulary", "EMPTY", "--no-generate"), "--vocabulary has no effect"),
        (("--data", "DATA", "--against", "OTHER"), "is a qwen2_vl model and .* a llava model"),
        (("--data", "DATA", "--against", "nowhere/at/all"), "there is no directory nowhere/at/all"),
        (("--data", "DATA", "--out", "no/folder/x.json"), "there is no directory no/folder"),
        (("--data", "NOCHOSEN"), r"bad.jsonl:1: .*not a known format"),
    ],
)
def test_bad_input_says_what_to_write(
    words: tuple[object, ...],
    message: str,
    tiny: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "What?", "rejected": "A dog."}\n')
    known = {"DATA": data, "EMPTY": tmp_path / "empty.txt", "NOCHOSEN": tmp_path / "bad.jsonl"}
    known["OTHER"] = tiny("qwen2_vl") if "OTHER" in words else data
    monkeypatch.setattr("cwdpo.evaluation.run.load_checkpoint", load)
    with pytest.raises(UserError, match=message):
        cwdpo(tiny("llava"), *(known.get(word, word) for word in words))


def test_lines_for_a_log_come_at_most_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 9.0, 10.0, 10.0, 11.0, 20.0, 20.0])
    lines = ProgressLines(clock=lambda: next(times))
    for done in range(1, 5):
        lines("model: own answers", done, 4)
    assert capsys.readouterr().err == "evaluation  model: own answers 2/4\nevaluation  model: own answers 4/4\n"


def test_the_newest_evaluation_speaks(tmp_path: Path) -> None:
    for number, name in enumerate(("evaluation-2.json", "evaluation.json")):
        (tmp_path / name).write_text(json.dumps({"words": name}))
        os.utime(tmp_path / name, (number, number))
    assert words_of(RunDirectory(tmp_path)) == "evaluation.json"


def test_the_hand_over_to_lmms_eval(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    said = cwdpo(tiny("llava"), "--harness", "lmms-eval", "--tasks", "mme")
    command, advice = said.splitlines()
    options = f"--model_args pretrained={tiny('llava').resolve()} --tasks mme --batch_size 1"
    assert command == f"python -m lmms_eval --model llava_hf {options}"
    assert "pip install lmms-eval" in advice
    assert "--model vllm --model_args model=" in cwdpo(tiny("idefics3"), "--harness", "lmms-eval")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="cwdpo merge"):
        cwdpo(tmp_path, "--harness", "lmms-eval")
