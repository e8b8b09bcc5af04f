"""Slips in a recipe, and other files in its place: the message says what to write."""

import json
from pathlib import Path

import pytest

from cwdpo.config.recipe_file import naming_lines, read_recipe
from cwdpo.errors import ConfigError, UserError, about

RECIPE = "model: {name_or_path: m}\ndata: {train: rows.jsonl}\n"


def fields() -> dict[str, object]:
    """Some settings of the Trainer."""
    return {"learning_rate": float, "num_train_epochs": float, "optim": str}


def complaint(path: Path, words: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, words, trainer_fields=fields)
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
        ("stage2: {}\nlearning_rate: 1\n", "'learning_rate', which is a setting of the Trainer. Write it in trainer."),
        (
            "stage1: {trainer: {learning_rate: 1}}\nstage2: {trainer: {learning_rate: 1}}\nlearning_rate: 1\n",
            "'learning_rate'. Each stage has its own: change stage1.trainer.learning_rate and stage2.",
        ),
        (
            "stage2: {learning_rate: 1}\n",
            "'stage2.learning_rate', which is a setting of the Trainer. Write it in stage2.",
        ),
        ("stage2: {cooling: {optim: sgd}}\n", "is a setting of the Trainer. Write it in stage2.trainer."),
        ("stage2: {}\nprobes: {optim: sgd}\n", "is a setting of the Trainer. Write it in trainer."),
        ("stage2: {temperatures: 1}\n", "key 'stage2.temperatures' - did you mean 'stage2.cooling.temperature'?"),
        ("stage2: {learning_rte: 1}\n", "'stage2.learning_rte' - did you mean 'stage2.trainer.learning_rate'?"),
        ("stage2: {xyz: 1}\n", "unknown key 'stage2.xyz'. Known here: beta, loss, "),
        ("stage2: {}\nprobes: {beta: 1}\n", "'probes.beta'. It belongs in another section: stage2.beta."),
        ("stage2: {output_dir: x}\n", "'stage2.output_dir'. Write it at the top of the recipe."),
        ("stage2: {cooling: {floor: chosn}}\n", "floor is 'chosn'. Did you mean chosen?"),
        ("stage2: {cooling: {floor: chosen - tau * 2}}\n", "is 'chosen - tau * 2'. Did you mean chosen - 2 tau?"),
        ("stage2: {cooling: {floor: chosn - 2 tau}}\n", "Did you mean chosen - 2 tau?"),
        ("stage2: {cooling: {floor: chosen - 2 Tau}}\n", "Did you mean chosen - 2 tau?"),
        ("stage2: {cooling: {floor: 'Mean-1,5*taus'}}\n", "Did you mean mean - 1.5 tau?"),
        ("stage2: {cooling: {floor: gentle - tau}}\n", "Did you mean gentle - 1 tau?"),
        ("stage2: {cooling: {floor: 'quantile 0.5'}}\n", "Write chosen, gentle, mean or quantile:0.5"),
        ("stage2: {cooling: {floor: 'quantile: 0.5 - tau'}}\n", "Did you mean quantile:0.5 - 1 tau?"),
        ("stage2: {cooling: {floor: median - 2 tau}}\n", "Did you mean quantile:0.5 - 2 tau?"),
        ("stage2: {cooling: {floor: '-3,5'}}\n", "floor is '-3,5'. Did you mean -3.5?"),
        ("stage2: {cooling: {floor: chosen - 2 tau 3}}\n", "Write chosen, gentle, mean or quantile:0.5"),
        ("stage2: {cooling: {floor: chosen + 2 tau}}\n", "Write chosen, gentle, mean or quantile:0.5"),
        ("stage2: {}\nevaluate: {data: 5}\n", "evaluate.data is 5, but must be the path of a file of rows."),
        ("stage2\ntrainer: {}\n", "r.yaml:3: this is not valid YAML. A colon is missing: write `stage2:`."),
        ("stage2\n  beta: 0.1\n", "r.yaml:3: this is not valid YAML. A colon is missing: write `stage2:`."),
        ("stage1: {}\nstage2\n", "r.yaml:4: this is not valid YAML. A colon is missing: write `stage2:`."),
        ('stage2: {loss: "ipo}\nseed: 0\nengine: auto\n', "r.yaml:3: the quote that begins here is not closed."),
        ("stage2:\n  loss: 'ipo\n  reference: 'live'\n", "r.yaml:4: the quote that begins here is not closed."),
        (
            "stage2: {beta: 0.1\nseed: 0\nengine: auto\n",
            "r.yaml:3: this is not valid YAML: the bracket that opens here",
        ),
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
        ("-o runs/x", "-o is not an option. Write --output_dir runs/x."),
        ("-o out --seed 1", "-o is not an option. Write --output_dir out."),
        ("--out runs/x", "--out: unknown setting - did you mean '--output_dir'?"),
        ("--tau 0.3", "--tau: unknown setting - did you mean '--stage2.cooling.temperature'?"),
        ("--resume_from_checkpoint x", "unknown setting: run `cwdpo train RECIPE --resume`."),
        ("--dry-run", "--dry_run: unknown setting: run `cwdpo check RECIPE`, which trains nothing."),
        ("--num_processes 2", "start them with `torchrun --nproc-per-node N -m cwdpo train RECIPE`, see docs/gpus.md"),
        (
            "--stage1.enabled false",
            "unknown setting: to switch a section off, write null in its place. As in --stage1 null.",
        ),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage2: {cooling: {tau: 0.3}}", "'stage2.cooling.tau' - did you mean 'stage2.cooling.temperature'?"),
        ("stage2: {simpo_gamma: 1}", "did you mean 'stage2.loss_parameters.simpo_margin'?"),
        ("stage2: {}\ntrain_file: a.jsonl", "unknown key 'train_file' - did you mean 'data.train'?"),
        ("stage2: {}\nlora_r: 8", "unknown key 'lora_r' - did you mean 'model.lora.r'?"),
        ("stage2: {}\ntrainer: {lora_r: 8}", "unknown key 'trainer.lora_r' - did you mean 'model.lora.r'?"),
        ("stage2: {}\ntemplate: qwen2_vl", "'template': the chat template is the processor's own. Take it out."),
        ("stage2: {}\nresume: true", "unknown key 'resume': run `cwdpo train RECIPE --resume`."),
        ("stage2: {label_smoothing: 0.1}", "write `stage2: {loss: robust, loss_parameters: {robust_noise: ...}}`."),
        ("stage2: {}\ntrainer: {label_smoothing: 0.1}", "'trainer.label_smoothing': write `stage2: {loss: robust"),
        ("stage2: {rpo_alpha: 1}", "write `stage2: {loss: {sigmoid: 1.0, nll: ALPHA}}`."),
        ("stage2: {}\nload_in_4bit: true", "write `model: {lora: {}, quantization: {bits: 4}}`."),
        ("stage2: {enabled: false}", "'stage2.enabled': to switch a section off, write null in its place."),
        ("stage2: {loss: dpo}", "DPO is sigmoid."),
        ("stage2: {loss: hinge}", "Near it are sigmoid and ipo."),
        ("stage2: {loss: sft}", "Did you mean nll?"),
        ("stage2: {loss: [sigmoid, sft]}", "Write {sigmoid: 1, nll: 1}."),
        ("stage2: {loss: 'sigmoid, bco'}", "Write {sigmoid: 1, bco: 1}."),
        ("stage2: {loss: {sigmoid: 1, sft: 1}}", "stage2.loss has the key 'sft', but its keys must be one of sigmoid"),
        ("stage2: {loss: {sigmoid: 1, sft: 1}}", "Did you mean nll?"),
        ("stage2: {loss: {sigmoid: 1, nll: '0,5'}}", "stage2.loss has nll: '0,5', but must have a number there. Write"),
        ("stage2: {reference: tiny}", "must be cached or live; the reference is the model that it starts from."),
        ("stage2: {}\nnegatives: {on_policy_fraction: 50}", "is 50, but a share goes from 0 to 1. Write 0.5."),
        ("stage2: {}\noutput_dir:", "'output_dir' has no value. Write one, such as `output_dir: runs/cwdpo`."),
        ("stage2: {}\nseed:", "'seed' has no value. Write one, such as `seed: 0`."),
        ("stage2:", "'stage2' has no value. Write one, such as `stage2: {}`."),
        ("stage2: {beta: high}", "must be a number. Write one, such as 0.1."),
        ("stage2: {loss: [a, {b: 1}]}", "stage2.loss is ['a', {'b': 1}], but must be one of sigmoid"),
    ],
)
def test_words_of_papers_and_other_tools(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "r.yaml").write_text(f"{RECIPE}{text}\n")
    assert expected in complaint(tmp_path / "r.yaml")


@pytest.mark.parametrize("wrong", ["1024x1024", "1024 * 1024", "large"])
def test_numbers_of_pixels(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("rows.jsonl", f"rows.jsonl, max_pixels: {wrong}") + "stage2: {}\n")
    assert "or null. Write " in complaint(tmp_path / "r.yaml")
    assert "1048576" in complaint(tmp_path / "r.yaml")


def test_a_directory_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "r.yaml").write_text(RECIPE + "stage2: {}\noutput_dir: ~/runs/a\n")
    assert read_recipe(tmp_path / "r.yaml").output_dir == str(tmp_path / "runs" / "a")
    assert read_recipe(tmp_path / "r.yaml", ("--output_dir", "~/b")).output_dir == str(tmp_path / "b")


@pytest.mark.parametrize("text", ["data: {train: 5}\n", "data:\n  train: [5]\n"])
def test_a_number_where_rows_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text("model: {name_or_path: m}\nstage2: {}\n" + text)
    assert "but must be the path of a file of rows, or a list of paths." in complaint(tmp_path / "r.yaml")


def test_a_recipe_in_json_is_read(tmp_path: Path) -> None:
    values = {"model": {"name_or_path": "m"}, "data": {"train": "a.jsonl"}, "stage2": {"beta": 0.2}}
    for name, text in (("a.json", json.dumps(values)), ("b.json", json.dumps(values, indent="\t"))):
        (tmp_path / name).write_text(text)
        assert read_recipe(tmp_path / name).stage2.beta == 0.2  # type: ignore[union-attr]
    (tmp_path / "a.json").write_text(json.dumps(values | {"stage2": {"bta": 1}}, indent=1))
    assert complaint(tmp_path / "a.json").startswith(f"{tmp_path}/a.json:9: unknown key 'stage2.bta'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"model": {"name_or_path": "m"},\n "data" {}}', "r.json:2: this is not valid JSON: Expecting ':' delimiter."),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "this is a file of rows"),
        ('[{"prompt": "a"}]', "this is a file of rows"),
        ('{"prompt": "a"}', "this is a file of rows"),
        ('{"stage": "dpo", "finetuning_type": "lora"}', "this is a configuration of LLaMA-Factory"),
    ],
)
def test_json_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "r.json").write_text(text)
    assert expected in complaint(tmp_path / "r.json")


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


@pytest.mark.parametrize(
    ("setting", "words", "place"),
    [
        ("stage2.beta", "", "r.yaml:3: "),
        ("target_modules", "", "r.yaml:1: "),
        ("stage2.beta", "--stage2.beta 0.2", "--stage2.beta: "),
        ("model.name_or_path", "--model.name_or_path /x/m", "--model.name_or_path: "),
        ("stage2.loss", "", ""),  # left out
        ("optim", "", ""),  # given twice
        (None, "", ""),
    ],
)
@pytest.mark.parametrize("kind", [UserError, ConfigError])
def test_what_a_run_refuses_has_the_settings_line(
    tmp_path: Path, kind: type[UserError], setting: str | None, words: str, place: str
) -> None:
    lora = "model: {name_or_path: some/where, lora: {target_modules: x}}\n"
    stage = "stage2: {beta: 0.1, trainer: {optim: sgd}}\ntrainer: {optim: sgd}\n"
    (tmp_path / "r.yaml").write_text(f"{lora}data: {{train: rows.jsonl}}\n{stage}")
    with pytest.raises(kind) as caught, naming_lines(tmp_path / "r.yaml", words.split()):
        raise kind("data.train is no beta.", setting=setting)
    assert str(caught.value).replace(f"{tmp_path}/", "") == f"{place}data.train is no beta."


def test_the_nearest_place_that_knows_the_setting_names_it() -> None:
    with pytest.raises(ConfigError) as caught, about("model.name_or_path"), about("data.max_length"), about(None):
        raise ConfigError("too long")
    assert caught.value.setting == "data.max_length"
