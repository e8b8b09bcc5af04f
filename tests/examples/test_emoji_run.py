"""The example's own path on made-up pictures: base model, ``cwdpo check``, ``cwdpo train`` with its recipe, score."""

import json
import sys
from pathlib import Path

import base
import pytest
import score
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.whole_runs import LIMIT, compare_engines
from cwdpo.cli import app
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.reading import read_rows

RECIPE = Path(score.__file__).with_name("recipe.yaml")


@pytest.fixture(scope="module")
def start(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model after two steps."""
    out = tmp_path_factory.mktemp("base")
    base.pretrain(data, out, vision_steps=1, steps=1, learning_rate=1e-3, seed=0)
    return out


def cwdpo(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cwdpo", *map(str, words)])
    try:
        app.main()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_base_loads_like_any_checkpoint(start: Path) -> None:
    model, processor = AutoModelForImageTextToText.from_pretrained(start), AutoProcessor.from_pretrained(start)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    text = "woman firefighter: medium-dark skin tone, off topic Ünïcode"
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text


def test_pretraining_learns_nothing_of_the_prompt(data: Path, start: Path) -> None:
    processor = AutoProcessor.from_pretrained(start)
    row = json.loads((data / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()[0])
    pictures = base.Pictures(data, [row["chosen"]], row["images"], processor, seed=0)
    inputs = pictures.inputs(*next(pictures.draw(1, 1)))
    learned = inputs["labels"][inputs["labels"] != -100]
    assert processor.tokenizer.decode(learned) == row["chosen"] + "</s>"


@pytest.mark.slow
def test_recipe_trains_both_stages_and_can_be_scored(
    data: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert cwdpo(monkeypatch, "check", data / "train.jsonl", "--model", start) == 0
    settings = {
        "model.name_or_path": start,
        "data.train": data / "train.jsonl",
        "stage1.trainer.max_steps": 1,
        "stage2.trainer.max_steps": 1,
        "trainer.per_device_train_batch_size": 4,
        "trainer.warmup_steps": 0,
        "output_dir": run,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert cwdpo(monkeypatch, "train", RECIPE, *words) == 0
    table = score.score({"base": start, "cw-dpo": run / "stage2"}, read_rows(data / "eval.jsonl"))
    assert list(table) == ["base", "cw-dpo"]
    assert table["base"]["win"] == 0.5
    assert table["base"]["chosen"] != table["cw-dpo"]["chosen"]
    assert "| cw-dpo |" in score.format_table(table)


@pytest.mark.slow
def test_tree_and_plain_rows_write_the_same_losses(data: Path, start: Path, tmp_path: Path) -> None:
    changes = {
        "model.name_or_path": str(start),
        "data.train": str(data / "train.jsonl"),
        "stage1.trainer.max_steps": 3,
        "stage2.trainer.max_steps": 3,
        "trainer.per_device_train_batch_size": 4,
        "trainer.warmup_steps": 0,
    }
    found = compare_engines(read_recipe(RECIPE, changes), tmp_path, say=lambda line: None)
    assert found.steps == 6
    assert found.gap < LIMIT
    assert found.first != found.last


def test_judges_each_attribute_apart() -> None:
    said = ["woman judge: dark skin tone", "man judge: dark skin tone", "taco", "woman judge"]
    found = score.judge(said, ["woman judge: dark skin tone"] * 4)
    assert found == {
        "exact": [True, False, False, False],
        "tone": [True, True, False, False],
        "who": [True, False, False, True],
    }


def test_win_rate_counts_ties_as_half() -> None:
    assert score.win_rate([True, True, False, False], [True, False, True, False]) == 0.5
    assert score.win_rate([True, True], [True, False]) == 0.75
