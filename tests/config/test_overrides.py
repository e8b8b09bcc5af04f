"""Settings of the command line."""

from pathlib import Path
from typing import Any

import pytest

from cwdpo.config.recipe import CoolingConfig, Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.errors import ConfigError

RECIPE = "model: {name_or_path: m}\ndata: {train: a.jsonl}\nstage2: {beta: 0.5}\ntrainer: {max_steps: 3}\n"


def read(folder: Path, *words: str, text: str = RECIPE) -> Recipe:
    path = folder / "r.yaml"
    path.write_text(text)
    return read_recipe(
        path,
        words,
        trainer_fields=lambda: {
            **{"max_steps": int, "learning_rate": float, "fsdp_config": dict, "optim": str, "bf16": bool},
            **{"per_device_train_batch_size": int, "lr_scheduler_type": str},
            **{"num_train_epochs": float, "save_steps": int, "save_strategy": str},
        },
    )


def test_full_and_short_names_mean_the_same(tmp_path: Path) -> None:
    for words in (["--stage2.beta", "0.2"], ["--beta", "0.2"], ["--beta=0.2"], ["--beta", "9", "--beta", "0.2"]):
        changed = read(tmp_path, *words)
        assert changed.stage2 is not None
        assert changed.stage2.beta == 0.2


def test_values_are_yaml(tmp_path: Path) -> None:
    changed = read(tmp_path, "--floor", "-2", "--trainer.learning_rate", "1e-6", "--detach", "false")
    assert changed.stage2 is not None
    assert changed.stage2.cooling == CoolingConfig(floor=-2.0, detach=False)
    assert changed.trainer == {"max_steps": 3, "learning_rate": 0.000001}
    plain = read(tmp_path, "--stage2.cooling", "null", "--trainer.max_steps", "10")
    assert plain.stage2 is not None
    assert plain.stage2.cooling is None
    assert plain.trainer == {"max_steps": 10}
    assert read(tmp_path, "--stage2.trainer.fsdp_config.min_num_params", "1").stage2.trainer == {  # type: ignore[union-attr]
        "fsdp_config": {"min_num_params": 1}
    }


@pytest.mark.parametrize("text", ["/x/run #1", "runs/a: b", "[draft", "{x}", "*best", "7", "1e-6", "on", "~", "a\tb"])
def test_a_text_is_taken_as_it_was_typed(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "--output_dir", text).output_dir == str(Path(text).expanduser())
    assert read(tmp_path, f"--output_dir='{text}'").output_dir == str(
        Path(text).expanduser()
    )  # YAML's own quotes may still be there
    held_out = read(tmp_path, "--data.eval", f"/{text}").data.eval
    assert held_out == f"/{text}"
    assert read(tmp_path, "--data.train", f"/x/{text}.jsonl").data.train == str(Path(f"/x/{text}.jsonl"))


def test_a_list_of_texts_is_yaml(tmp_path: Path) -> None:
    assert read(tmp_path, "--data.train", "[/a.jsonl, '/b #2.jsonl']").data.train == ["/a.jsonl", "/b #2.jsonl"]
    assert read(tmp_path, "--data.train", "hf:owner/name:train").data.train == "hf:owner/name:train"
    assert read(tmp_path, "--data.image_root", "/a:/b").data.image_root == ["/a", "/b"]
    assert read(tmp_path, "--data.image_root", "[/a, /b]").data.image_root_path == Path("/a:/b")


def test_a_text_that_may_be_null_can_be_null(tmp_path: Path) -> None:
    assert read(tmp_path, "--data.eval", "null").data.eval is None


def test_dashes_are_read_as_underscores(tmp_path: Path) -> None:
    assert read(tmp_path, "--output-dir", "x").output_dir == "x"


def test_python_values_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    given: dict[str, Any] = {"beta": 0.25, "stage1": {"objective": "plain"}}
    changed = read_recipe(tmp_path / "r.yaml", given)
    assert (changed.stage2.beta, changed.stage1.objective) == (0.25, "plain")  # type: ignore[union-attr]


def test_paths_given_on_the_command_line_start_where_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    changed = read(tmp_path, "--train", "b.jsonl", "--name_or_path", "model")
    assert changed.data.train == str(tmp_path / "elsewhere" / "b.jsonl")
    assert changed.model.name_or_path == str(tmp_path / "elsewhere" / "model")


def test_a_section_may_be_switched_on_and_then_changed(tmp_path: Path) -> None:
    changed = read(tmp_path, "--model.lora", "{}", "--lora.r", "4")
    assert changed.model.lora is not None
    assert (changed.model.lora.r, changed.model.lora.alpha) == (4, 32)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--bta", "1"], "--bta: unknown setting - did you mean '--stage2.beta'?"),
        (
            ["--per_device_train_batch_size", "1"],
            "--per_device_train_batch_size: unknown setting. Write --trainer.per_device_train_batch_size 1.",
        ),
        (["--stage2.learning_rate", "1e-5"], "unknown setting. Write --stage2.trainer.learning_rate 1e-5."),
        (["--stage2.cooling.learning_rate", "1e-5"], "unknown setting. Write --stage2.trainer.learning_rate 1e-5."),
        (["--model.learning_rate", "1e-5"], "unknown setting. Write --trainer.learning_rate 1e-5."),
        (["--stage2.lr", "1e-5"], "--stage2.lr: unknown setting - did you mean '--stage2.trainer.learning_rate'?"),
        (["--stage2.temperatures", "1"], "unknown setting - did you mean '--stage2.cooling.temperature'?"),
        (["--cooling.temperatures", "1"], "unknown setting - did you mean '--stage2.cooling.temperature'?"),
        (["--model.beta", "1"], "--model.beta: unknown setting. Write --stage2.beta 1."),
        (["--stge2.beta", "1"], "--stge2.beta: unknown setting. Write --stage2.beta 1."),
        (["--xyz", "1"], "--xyz: unknown setting. See docs/recipe.md or `cwdpo schema`; a setting of transformers"),
        (
            ["--trainer.max_step", "1"],
            "--trainer.max_step: unknown key 'trainer.max_step' - did you mean 'trainer.max_steps'?",
        ),
        (["--beta"], "--beta has no value. Write one, such as --beta 0.1."),
        (["--stage2.loss"], "--stage2.loss has no value. Write one, such as --stage2.loss sigmoid."),
        (["--stage2.cooling"], "--stage2.cooling has no value. Write one, such as --stage2.cooling {}."),
        (["--detach"], "--detach has no value. Write one, such as --detach true."),
        (["--data.max_length"], "--data.max_length has no value. Write one, such as --data.max_length 1."),
        (["--output-dir"], "--output-dir has no value. Write one, such as --output-dir runs/cwdpo."),
        (["--trainer.bf16"], "--trainer.bf16 has no value. Write one, such as --trainer.bf16 true."),
        (["--stage2.trainer.optim"], "has no value. Write one, such as --stage2.trainer.optim TEXT."),
        (["--bta"], "--bta: unknown setting - did you mean '--stage2.beta'?"),
        (["--learning_rate"], "--learning_rate: unknown setting. Write --trainer.learning_rate VALUE."),
        (["--beta", "--seed", "1"], "--beta has no value."),
        (["--beta", "0"], "--beta: stage2.beta is 0.0, but must be > 0."),
        (["--stage2", "{bet: 1}"], "--stage2: unknown key 'stage2.bet' - did you mean 'stage2.beta'?"),
        (["beta", "0.2"], "'beta' is not a setting."),
        (["/tmp"], "'/tmp' is not a setting. A run's directory is --output_dir; --resume takes no path"),
        (
            ["--penalty", "1"],
            "--penalty has no effect: the recipe has no stage1. To switch it on, put --stage1 {} before it",
        ),
        (
            ["--cooling", "null", "--stage2.cooling.temperature", "1"],
            "--stage2.cooling.temperature has no effect: the recipe has no stage2.cooling.",
        ),
        (["--seed.x", "1"], "--seed.x: unknown setting"),
        (["--beta", "["], "--beta: this is not valid YAML"),
        (["--trainer", "3", "--trainer.max_steps", "1"], "--trainer.max_steps cannot be set: trainer is 3"),
    ],
)
def test_mistakes(tmp_path: Path, words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, *words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


STAGES = (
    "model: {name_or_path: m}\ndata: {train: a.jsonl}\n"
    "stage1: {trainer: {learning_rate: 2e-4, max_steps: 5}}\n"
    "stage2:\n  trainer: {learning_rate: 5e-6}\n"
    "trainer: {max_steps: 3}\n"
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "--trainer.learning_rate 1e-5",
            "--trainer.learning_rate has no effect: r.yaml:3 sets stage1.trainer.learning_rate and r.yaml:5 sets "
            "stage2.trainer.learning_rate. Write --stage1.trainer.learning_rate 1e-05 --stage2.trainer.learning_rate "
            "1e-05.",
        ),
        (
            "--trainer.max_steps 4",
            "--trainer.max_steps has no effect on stage1: r.yaml:3 sets stage1.trainer.max_steps. Write "
            "--stage1.trainer.max_steps 4 --stage2.trainer.max_steps 4 for both stages, or name the stage that you "
            "mean.",
        ),
        (
            "--trainer {learning_rate: 1e-5}",
            "--trainer has no effect: r.yaml:3 sets stage1.trainer.learning_rate and r.yaml:5 sets stage2.trainer.",
        ),
        (
            "--trainer.learning_rate 1e-5 --stage1.trainer.learning_rate 1e-4",
            "--trainer.learning_rate has no effect on stage2: r.yaml:5 sets stage2.trainer.learning_rate.",
        ),
        (
            "--learning_rate 1e-5",
            "--learning_rate: unknown setting. Write --stage1.trainer.learning_rate 1e-5 "
            "--stage2.trainer.learning_rate 1e-5.",
        ),
        (
            "--lr 1e-5",
            "unknown setting. Write --stage1.trainer.learning_rate 1e-5 --stage2.trainer.learning_rate 1e-5.",
        ),
        ("--optim sgd", "--optim: unknown setting. Write --trainer.optim sgd."),
        (
            "--trainer.num_train_epochs 2",
            "--trainer.num_train_epochs has no effect on stage1 and stage2: r.yaml:3 sets stage1.trainer.max_steps and "
            "r.yaml:6 sets trainer.max_steps, which counts instead. Write --stage1.trainer.max_steps -1 "
            "--trainer.max_steps -1 too, or leave --trainer.num_train_epochs out.",
        ),
        (
            "--stage2.trainer.num_train_epochs 2",
            "--stage2.trainer.num_train_epochs has no effect on stage2: r.yaml:6 sets trainer.max_steps, which counts",
        ),
        (
            "--trainer.save_strategy epoch --stage1.trainer.save_steps 5",
            "--stage1.trainer.save_steps has no effect on stage1: --trainer.save_strategy sets trainer.save_strategy, "
            "which counts instead. Write --trainer.save_strategy steps too",
        ),
    ],
)
def test_what_the_recipes_stages_set_hides_the_shared_setting(tmp_path: Path, words: str, expected: str) -> None:
    name, _, rest = words.partition(" ")
    given = [name, rest] if rest.startswith("{") else words.split()
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, *given, text=STAGES)
    assert expected in str(caught.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(caught.value)


def test_a_shared_setting_that_reaches_its_stages_is_taken(tmp_path: Path) -> None:
    assert read(tmp_path, "--trainer.optim", "sgd", text=STAGES).trainer["optim"] == "sgd"
    assert read(tmp_path, "--trainer.max_steps", "5", text=STAGES).trainer["max_steps"] == 5  # as stage 1 says
    both = ["--trainer.max_steps", "4", "--stage1.trainer.max_steps", "6"]
    assert read(tmp_path, *both, text=STAGES).trainer["max_steps"] == 4
    epochs = ["--stage2.trainer.num_train_epochs", "2", "--stage2.trainer.max_steps", "-1"]
    assert read(tmp_path, *epochs, text=STAGES).stages["stage2"].trainer["num_train_epochs"] == 2
    assert read(tmp_path, "--trainer.save_steps", "5", text=STAGES).trainer["save_steps"] == 5
    alone = ["--trainer.max_steps", "4", "--stage1", "null"]
    assert read(tmp_path, *alone, text=STAGES).trainer["max_steps"] == 4


def test_python_is_answered_like_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(STAGES)
    with pytest.raises(ConfigError, match=r"--trainer\.learning_rate has no effect: .*:3 sets stage1\.trainer"):
        read_recipe(tmp_path / "r.yaml", {"trainer.learning_rate": 1e-5})


def test_an_ambiguous_name_lists_its_meanings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cwdpo.config.recipe_file.known_paths", lambda *_: [("stage1", "beta"), ("stage2", "beta")])
    with pytest.raises(
        ConfigError, match=r"--beta could be any of --stage1\.beta, --stage2\.beta\. Write the full name\."
    ):
        read(tmp_path, "--beta", "1")
