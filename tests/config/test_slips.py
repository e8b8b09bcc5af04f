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
        ("stage2: {beta: '0.2'}\n", "stage2.beta is '0.2', but must be a number. Write 0.2, without quotes."),
        ("stage2: {beta: '0,2'}\n", "must be a number. Write 0.2."),
        ("stage2: {}\nlr: 1e-4\n", "unknown key 'lr' - did you mean 'trainer.learning_rate'?"),
        ("stage2: '{beta: 0.2}'\n", "Take off its quotes."),
        ("stage2: {loss: “ipo”}\n", "r.yaml:3: “ipo” stands in curly quotes. Write straight ones, or none."),
        ('stage2: {reference: "C:\\models"}\n', "r.yaml:3: in double quotes a backslash has a meaning of its own."),
        ("stage2:\n  beta: 0.1\n loss: ipo\n", "r.yaml:5: the line is indented differently from those"),
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
        # a file that is called like a key
        (("--data", "train.jsonl"), "Write {train: train.jsonl}, or --data.train train.jsonl on the command line."),
    ],
)
def test_a_value_for_a_section_on_the_command_line(tmp_path: Path, words: tuple[str, str], expected: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {}\n")
    assert expected in complaint(tmp_path / "r.yaml", words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--set stage2.beta=0.2", "--set is not needed: write --stage2.beta 0.2."),
        ("--set=stage2.beta=0.2", "--set is not needed: write --stage2.beta 0.2."),
        ("-o beta 0.2", "-o is not needed: write --beta VALUE."),
        ("beta=0.2", "'beta=0.2' is not a setting. Write --beta 0.2."),
        ("stage2.beta 0.2", "'stage2.beta' is not a setting. Write --stage2.beta 0.2."),
        ("-beta 0.2", "'-beta' is not a setting. Write --beta 0.2."),
        ("other.yaml", "'other.yaml' is not a setting. `cwdpo train` runs one recipe at a time."),
        ("runs/r", "'runs/r' is not a setting. Write settings after the recipe as --key value; a run's directory is"),
        ("--lr 1e-4", "--lr: unknown setting - did you mean '--trainer.learning_rate'?"),
        ("--epochs 3", "did you mean '--trainer.num_train_epochs'?"),
        ("--batch_size 4", "the recipe has no negatives. The Trainer's is --trainer.per_device_train_batch_size."),
        ("--stage2.beta 0,2", "stage2.beta is '0,2', but must be a number. Write 0.2."),
        ("--data.stage1_fraction 75%", "must be a number. Write 0.75."),
        ("--seed 1,000", "seed is '1,000', but must be a whole number. Write 1000."),
        ("--stage2.cooling {floor:", "--stage2.cooling: this is not valid YAML: "),
        ("--stage2.cooling {floor:", "Quote the whole value for your shell, as in --stage2.cooling '{key: value}'"),
    ],
)
def test_settings_written_as_in_other_tools(tmp_path: Path, words: str, expected: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {}\n")
    assert expected in complaint(tmp_path / "r.yaml", tuple(words.split(" ")))


def test_settings_of_the_trainer_by_another_word(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {trainer: {epochs: 3}}\ntrainer: {learning_rate: '1e-4'}\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(tmp_path / "r.yaml", trainer_fields=lambda: {"num_train_epochs": float, "learning_rate": float})
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/r.yaml:4: trainer.learning_rate is '1e-4', but must be a number. Write 1e-4, without quotes.",
    ]
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {trainer: {epochs: 3}}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'stage2.trainer.epochs' - did you mean .*num_train_epochs'\?"):
        read_recipe(tmp_path / "r.yaml", trainer_fields=lambda: {"num_train_epochs": float})


def test_paths_are_shown_without_detours(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: {name_or_path: m}\ndata: {train: a/../rows.jsonl}\nstage2: {}\n")
    assert read_recipe(tmp_path / "r.yaml").data.train == str(tmp_path / "rows.jsonl")
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "a").symlink_to(tmp_path / "far" / "inner")  # now a/.. is another directory
    assert read_recipe(tmp_path / "r.yaml").data.train == str(tmp_path / "a" / ".." / "rows.jsonl")


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
