"""Slips in a recipe, and other files in its place: the message says what to write."""

from pathlib import Path

import pytest

from cwdpo.config.recipe_file import read_recipe
from cwdpo.errors import ConfigError

RECIPE = "model: {name_or_path: m}\ndata: {train: rows.jsonl}\n"


def complaint(path: Path, words: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage2:\n  beta 0.1\n", "r.yaml:3: stage2 is 'beta 0.1'"),
        ("stage2:\n  beta 0.1\n", "missing? Write beta: 0.1."),
        ("stage2:\n  beta:0.1\n", "missing? Write beta: 0.1."),
        ("stage2: {beta 0.1}\n", "'stage2.beta 0.1' has no value. A colon is missing: write `beta: 0.1`."),
        ("stage2: {beta:0.1}\n", "'stage2.beta:0.1' has no value. A space is missing: write `beta: 0.1`."),
        (
            "stage2:\n  beta 0.1\n  loss: ipo\n",
            "r.yaml:4: this is not valid YAML. A colon is missing: write `beta: 0.1`",
        ),
        (
            "stage2:\n  loss: ipo\n  beta 0.1\n",
            "r.yaml:5: this is not valid YAML. A colon is missing: write `beta: 0.1`",
        ),
        ("stage2: {}\nbeta: 0.1\n", "r.yaml:4: unknown key 'beta'. It belongs further down: stage2.beta."),
        ("stage2: {}\nlora: {}\n", "r.yaml:4: unknown key 'lora'. It belongs further down: model.lora."),
        ("stage2: {}\nlearning_rate: 1\n", "setting of transformers.TrainingArguments, trainer.learning_rate."),
        ("stage2: {cooling: false}\n", "To switch it off, write null."),
        ("stage2: {cooling: true}\n", "For its defaults, write {}."),
        (f"stage2: {{beta: {'x' * 500}}}\n", "xxxx', but must be a number."),
    ],
)
def test_slips_of_the_pen(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + text)
    assert expected in complaint(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--model", "Qwen/x"), "Write {name_or_path: Qwen/x}, or --model.name_or_path Qwen/x on the command line."),
        (("--data", "a.jsonl"), "Write {train: a.jsonl}, or --data.train a.jsonl on the command line."),
    ],
)
def test_a_value_for_a_section_on_the_command_line(tmp_path: Path, words: tuple[str, str], expected: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {}\n")
    assert expected in complaint(tmp_path / "r.yaml", words)


def test_other_things_in_place_of_a_recipe(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.parquet", "run.sh", "model/config.json", "run/recipe.yaml", "more/my.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    expected = {
        "rows.jsonl": "a file of rows, and a recipe is needed. Make one: `cwdpo init",
        "rows.parquet": "a file of rows",
        "run.sh": "a script, not a recipe",
        "model": f"this is a model. Make a recipe for it: `cwdpo init DATA --model {tmp_path / 'model'}`.",
        "run": f"this is a run. Continue it with its recipe: `cwdpo train {tmp_path / 'run' / 'recipe.yaml'}",
        "more": f"this is a directory, and a recipe is a YAML file. Did you mean {tmp_path / 'more' / 'my.yaml'}?",
        "empty": "`cwdpo init DATA --model MODEL` makes one.",
    }
    for name, words in expected.items():
        assert words in complaint(tmp_path / name)
