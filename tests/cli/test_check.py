"""``cwdpo check`` on real files and a tiny model of a real class."""

import json
import shutil
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


def test_image_roots_may_be_given_one_by_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (56, 56)).save(tmp_path / "pictures" / "b.png")
    (tmp_path / "rows").mkdir()
    row = {"image": str(tmp_path / "pictures" / "b.png"), "prompt": "x", "chosen": "a", "rejected": "b"}
    rows = written(tmp_path / "rows", row)
    assert run(rows)[0] == 1  # the second image lies outside
    assert run(rows, "--image-root", tmp_path / "rows", "--image-root", tmp_path / "pictures")[0] == 0
    assert run(rows, "--image-root", f"{tmp_path}/rows:{tmp_path}/pictures")[0] == 0
    code, _, err = run(rows, "--image-root", tmp_path / "rows", "--image-root", tmp_path / "pictrues")
    assert (code, err) == (
        2,
        f"the image root {tmp_path}/pictrues is not a directory. Did you mean {tmp_path}/pictures?\n",
    )


def test_only_the_first_problems_are_printed(run: Run, tmp_path: Path) -> None:
    bad = [{"prompt": "x", "chosen": "a", "rejected": "b", f"rejecte{sign}": "b"} for sign in "abcefghijklmn"]
    code, out, _ = run(written(tmp_path, *bad))
    assert code == 1
    assert out.count("STOPS TRAINING: ") == 11
    assert "and 3 more (3 unusable_row). --json lists all." in out


def test_what_is_the_same_in_many_rows_is_one_line(run: Run, tmp_path: Path) -> None:
    """Values and paths differ from row to row, the problem does not; another one is seen beside it."""
    lost = [{"image": f"../{i}.png", "prompt": "x", "chosen": "a", "rejected": "b"} for i in range(24)]
    code, out, _ = run(written(tmp_path, *lost, {"prompt": "x", "chosen": ""}))
    assert code == 1
    problems = [line for line in out.splitlines() if line.startswith("STOPS TRAINING")]
    assert len(problems) == 2
    assert f"{tmp_path}/rows.jsonl:2: " in problems[0]
    assert problems[0].endswith(" (and 23 more rows)")
    assert "`chosen` is empty" in problems[1]
    assert not problems[1].endswith("rows)")


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
    assert "is a folder of rows, and a model is needed" in err


def test_rows_without_rejected_are_a_note_for_a_file_may_be_for_stage_1(run: Run, tmp_path: Path) -> None:
    rows = written(tmp_path, {"prompt": "x", "chosen": "a"}, {"prompt": "y", "chosen": "a"})
    code, out, _ = run(rows)
    assert code == 0
    assert f"note: {rows}:2: 2 of 3 rows have no `rejected`, this one first. Stage 1 takes such rows;" in out


def test_a_limit_can_be_given(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    rows = written(tmp_path)
    assert run(rows, "--model", tiny("llava"), "--max-length", 4096)[0] == 2
    code, out, _ = run(rows, "--model", tiny("llava"), "--max-length", 8)
    assert code == 1
    assert "more than the 8 allowed" in out
    assert run(rows, "--max-length", 8)[2] == "--max-length counts the tokens of a model. Add --model.\n"


def recipe(folder: Path, model: Path | dict[str, Any], **sections: Any) -> Path:
    path = folder / "r.yaml"
    loaded = model if isinstance(model, dict) else {"name_or_path": str(model)}
    common = {"model": loaded, "data": {"train": "rows.jsonl"}, "stage2": {}}
    path.write_text(json.dumps(common | {"output_dir": str(folder / "run")} | sections))
    return path


def test_rows_that_are_not_held_out_are_a_note(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    shared = {"prompt": "x", "chosen": "a", "rejected": "b"}
    written(tmp_path, shared)
    other = {"prompt": "y", "chosen": "a", "rejected": "b"}
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (other, shared)))
    code, out, _ = run(recipe(tmp_path, tiny("llava"), data={"train": "rows.jsonl", "eval": "eval.jsonl"}))
    assert code == 0
    assert "1 of 2 rows of data.eval is also in data.train, so it is not held out" in out
    assert f"the first is {tmp_path}/eval.jsonl:2." in out


def test_settings_are_changed_as_for_train(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    written(tmp_path, {"prompt": "x", "chosen": "a b", "rejected": "c"})
    path = recipe(tmp_path, tiny("llava"))
    code, out, _ = run(path, "--data.max_length", "5")
    assert (code, "more than the 5 allowed" in out) == (1, True)
    assert run(path, "--beta", "0")[2] == "--beta: stage2.beta is 0.0, but must be > 0. Try 0.1.\n"
    assert run(path, "--model.name_or_path", "/no")[2].startswith("--model.name_or_path: there is no directory /no.")


def test_rows_that_are_in_two_files_or_have_no_image_are_notes(
    run: Run, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    written(tmp_path, {"image": "", "prompt": "x", "chosen": "a", "rejected": "b"})
    code, out, _ = run(recipe(tmp_path, tiny("llava"), data={"train": ["rows.jsonl", "rows.jsonl"]}))
    assert code == 0
    assert "2 of 4 rows of data.train are also in an earlier file of it, and count twice; the first is" in out
    assert f"{tmp_path}/rows.jsonl:2: 1 of 2 rows have an image without a value, this one first" in out


def test_weights_that_are_not_there_are_found(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    written(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(tiny("llava"), model)
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    code, _, err = run(recipe(tmp_path, model))
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"{tmp_path}/r.yaml:1: {model}/model.safetensors is a Git LFS pointer")
    shutil.copy(tiny("llava") / "model.safetensors", model)
    for name in ("tokenizer.json", "tokenizer.model"):
        (model / name).unlink(missing_ok=True)
    assert "there is no tokenizer.json or tokenizer.model or" in run(recipe(tmp_path, model))[2]
    settings = {"name_or_path": str(tiny("llava")), "lora": {"target_modules": "all_linear"}}
    assert "Did you mean `all-linear`?" in run(recipe(tmp_path, settings))[2]


def test_a_recipe_of_rows_that_are_not_there_shows_no_empty_tables(
    run: Run, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: {{name_or_path: {tiny('llava')}}}\ndata: {{train: none.jsonl}}\nstage2: {{}}\n")
    code, out, _ = run(recipe)
    assert code == 1
    assert "none.jsonl: no such file" in out
    assert "memory" not in out
    assert "0 usable" not in out


def test_a_recipe_of_rows_that_teach_nothing_is_stopped(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "a"}) + "\n")
    code, out, _ = run(recipe(tmp_path, tiny("llava")))
    assert code == 1
    assert "data.train: no row has two different answers, so nothing can be learned" in out
    # stage 1 alone reads no rejected answer
    assert run(recipe(tmp_path, tiny("llava"), stage1={"objective": "plain"}, stage2=None))[0] == 0


def test_a_recipe_is_checked_whole(run: Run, tmp_path: Path, tiny: Callable[[str], Path]) -> None:
    rows = written(tmp_path, {"prompt": "x", "chosen": "a"})
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(json.dumps({"prompt": "x", "chosen": "a b c d e f", "rejected": "b"}) + "\n")
    assert run(recipe(tmp_path, tiny("llava"), stage1={"objective": "plain"}, stage2=None))[0] == 0
    code, out, _ = run(recipe(tmp_path, tiny("llava"), data={"train": "rows.jsonl", "eval": "eval.jsonl"}))
    assert code == 1
    assert "3 usable of 3" in out
    assert f"STOPS TRAINING: {rows}:2: the row has no `rejected` answer, which stage 2 needs. Add one." in out
    assert "1 thing stops training" in out
    written(tmp_path)
    data = {"train": "rows.jsonl", "eval": "eval.jsonl", "max_length": 20}
    code, out, _ = run(recipe(tmp_path, tiny("llava"), data=data), "--json")
    found = json.loads(out)
    assert (code, found["model"]["max_length"]) == (1, 20)
    assert {Path(finding["source"]).name for finding in found["findings"]} <= {"rows.jsonl:1", "eval.jsonl:1"}
    assert {finding["name"] for finding in found["findings"]} == {"too_long"}
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_enough_rows_or_gentle_negatives(
    run: Run, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    written(tmp_path)
    code, out, _ = run(recipe(tmp_path, tiny("llava"), stage1={}))
    assert code == 1
    assert "leaves a stage without rows" in out
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}) + "\n")
    code, out, _ = run(recipe(tmp_path, tiny("llava"), stage1={}, stage2=None))
    assert code == 1
    assert "objective: plain" in out


def test_settings_of_a_recipe_are_checked_without_its_gpu(
    run: Run, tmp_path: Path, tiny: Callable[[str], Path]
) -> None:
    written(tmp_path)
    assert run(recipe(tmp_path, tiny("llava"), trainer={"bf16": True}))[0] == 0
    code, _, err = run(recipe(tmp_path, tiny("llava"), trainer={"optim": "adamww"}))
    assert (code, err.count("\n")) == (2, 1)
    assert "trainer.optim is 'adamww'" in err
    for model, said in (
        ({"quantization": {}, "lora": {}}, "model.quantization needs a GPU, and there is none here. To train on this"),
        ({"attn_implementation": "flash_attention_2"}, "--model.attn_implementation null`"),
    ):
        settings = {"name_or_path": str(tiny("llava")), **model}
        code, out, _ = run(recipe(tmp_path, settings))
        assert code == 0
        assert said in out
        assert "Nothing stops training on a machine with a GPU." in out
    code, _, err = run(recipe(tmp_path, tiny("llava")), "--max-length", 9)
    assert code == 2
    assert err.startswith("--max-length has no effect beside")
