"""Recipes that are right, wrong in every way we could think of, and written back."""

import contextlib
import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.config import located_yaml
from cwdpo.config.recipe import (
    CoolingConfig,
    DataConfig,
    ModelConfig,
    NegativesConfig,
    Recipe,
    Stage1Config,
    Stage2Config,
)
from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.errors import ConfigError

MINIMAL = "model: {name_or_path: some/model}\ndata: {train: rows.jsonl}\nstage2: {}\n"


def test_attention_of_the_whole_model_or_of_each_part(tmp_path: Path) -> None:
    for text, expected in (
        ("auto", "auto"),
        ("{text: sdpa, vision: flash_attention_2}", {"text": "sdpa", "vision": "flash_attention_2"}),
    ):
        recipe = MINIMAL.replace("some/model", f"some/model, attn_implementation: {text}")
        path = written(tmp_path, recipe)
        assert read_recipe(path).model.attn_implementation == expected
    with pytest.raises(ConfigError, match=r"bad.yaml:1: .*audio"):
        read_recipe(written(tmp_path, MINIMAL.replace("some/model", "some/model, attn_implementation: {audio: sdpa}")))


def written(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str, *words: str) -> str:
    """The one-line message for a bad recipe, with the folder taken off."""
    with pytest.raises(ConfigError) as caught:
        read_recipe(written(folder, text), words, trainer_fields=lambda: {"learning_rate": float, "max_steps": int})
    message = str(caught.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


def test_a_minimal_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert recipe.stage1 is None
    assert recipe.stage2 == Stage2Config(
        beta=0.1, cooling=CoolingConfig(floor="chosen - 2 tau", temperature=0.3, detach=True)
    )
    assert recipe.data == DataConfig(train=str(tmp_path / "rows.jsonl"), stage1_fraction=0.75)
    assert recipe.model.trust_remote_code is False
    assert recipe.model.name_or_path == "some/model"


def test_the_papers_preset_fills_what_is_left_out(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, MINIMAL + "preset: paper\n"))
    assert recipe.stage2 is not None
    assert recipe.stage2.cooling == CoolingConfig(floor="mean")
    assert recipe.negatives == NegativesConfig()
    assert read_recipe(written(tmp_path, dump_recipe(recipe), "again.yaml")) == recipe
    assert read_recipe(tmp_path / "bad.yaml", ["--preset", "null"]).stage2 == Stage2Config()


def test_the_papers_preset_leaves_what_is_said(tmp_path: Path) -> None:
    said = MINIMAL.replace("stage2: {}", "stage2: {cooling: {floor: gentle}}") + "negatives: null\npreset: paper\n"
    recipe = read_recipe(written(tmp_path, said))
    assert recipe.stage2 is not None
    assert recipe.stage2.cooling == CoolingConfig(floor="gentle")
    assert recipe.negatives is None
    plain = read_recipe(written(tmp_path, MINIMAL.replace("{}", "{cooling: null}") + "preset: paper\n"))
    assert plain.stage2 is not None
    assert plain.stage2.cooling is None
    first = read_recipe(written(tmp_path, MINIMAL.replace("stage2", "stage1") + "preset: paper\n"))
    assert first.stage2 is None
    assert first.negatives is None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("preset: papers\n", "bad.yaml:4: preset is 'papers', but must be paper or null. Did you mean paper?"),
        (
            "stage1:\n  objektive: plain\n",
            "bad.yaml:5: unknown key 'stage1.objektive' - did you mean 'stage1.objective'?",
        ),
        ("sede: 1\n", "bad.yaml:4: unknown key 'sede' - did you mean 'seed'?"),
        ("seed: '1'\n", "bad.yaml:4: seed is '1', but must be a whole number."),
        ("seed: yes\n", "bad.yaml:4: seed is true, but must be a whole number."),
        ("seed:\n", "bad.yaml:4: 'seed' has no value."),
        ("seed: -1\n", "bad.yaml:4: seed is -1, but must be >= 0 and < 4.29497e+09. Try 0."),
        (
            "seed: 1\nengine: tre\n",
            "bad.yaml:5: engine is 'tre', but must be one of auto, tree, plain. Did you mean tree?",
        ),
        ("seed: 1\nseed: 2\n", "bad.yaml:5: 'seed' is given twice, first on line 4. Keep one."),
        ("stage1: {epsilon: 1.0}\n", "bad.yaml:4: stage1.epsilon is 1.0, but must be > 0 and < 1. Try 0.1."),
        ("stage1: {penalty: -1}\n", "bad.yaml:4: stage1.penalty is -1.0, but must be >= 0."),
        ("stage1: {ceiling: 0}\n", "bad.yaml:4: stage1.ceiling is 0.0, but must be > 0."),
        ("stage1: {ceiling: .nan}\n", "bad.yaml:4: stage1.ceiling is nan, but must be a number."),
        ("stage1: [1]\n", "bad.yaml:4: stage1 is [1], but must be a section with the keys objective, penalty"),
        (
            "stage1:\n  trainer:\n    lerning_rate: 1\n",
            "bad.yaml:6: unknown key 'stage1.trainer.lerning_rate' - did you mean",
        ),
        ("trainer: {seed: 3}\n", "bad.yaml:4: 'trainer.seed' is not set here. Write it at the top of the recipe"),
        ("trainer:\n\tmax_steps: 1\n", "bad.yaml:5: this line is indented with a tab. YAML needs spaces."),
        ("trainer: {a: 1\n", "bad.yaml:"),
        ("trainer: a: b\n", "bad.yaml:4: this is not valid YAML: a second ': ' on the line"),
        ("trainer: &t {a: *t}\n", "bad.yaml:4: an alias that stands for too much."),
        ("trainer: !!python/name:os.system\n", "bad.yaml:4: YAML tags such as"),
        ("output_dir: ''\n", "bad.yaml:4: output_dir is '', which names nothing."),
    ],
)
def test_each_mistake_names_its_line(tmp_path: Path, extra: str, expected: str) -> None:
    assert complaint(tmp_path, MINIMAL + extra).startswith(expected)


@pytest.mark.parametrize(
    ("stage2", "expected"),
    [
        ("coolling: null", "bad.yaml:4: unknown key 'stage2.coolling' - did you mean 'stage2.cooling'?"),
        ("beta: high", "bad.yaml:4: stage2.beta is 'high', but must be a number."),
        ("beta: 0", "bad.yaml:4: stage2.beta is 0.0, but must be > 0."),
        (
            "cooling: {temperature: 0}",
            "bad.yaml:4: stage2.cooling.temperature is 0.0, but must be > 0. To switch cooling off",
        ),
        (
            "cooling: {floor: 2}",
            "bad.yaml:4: stage2.cooling.floor is 2.0, but log-probabilities are never positive. Did you mean -2.0?",
        ),
        (
            "cooling: {floor: quantile:1}",
            "bad.yaml:4: stage2.cooling.floor is 'quantile:1'. Write chosen, gentle, mean or quantile:0.5",
        ),
        ("cooling: {floor: median}", "bad.yaml:4: stage2.cooling.floor is 'median'. Did you mean quantile:0.5?"),
        ("cooling: {floor: [1]}", "bad.yaml:4: stage2.cooling.floor is [1], but must be a number or text."),
        ("loss: simppo", "bad.yaml:4: stage2.loss is 'simppo', but must be one of sigmoid, robust,"),
        ("loss: {}", "bad.yaml:3: loss is empty. Write one name, such as sigmoid, or names with weights."),
        (
            "loss: {sigmoid: 1, nll: 0}",
            "bad.yaml:3: loss is {'sigmoid': 1.0, 'nll': 0.0}, but each weight must be > 0.",
        ),
        ("loss: nll", "bad.yaml:3: loss nll reads no rejected answer. Add one that does, such as `loss: {sigmoid: 1.0"),
        (
            "loss_parameters: {simpo_margin: 1.0}",
            "bad.yaml:3: simpo_margin belongs to loss simpo, but loss is sigmoid. Take it out.",
        ),
        (
            "loss_parameters: {running_momentum: 0.5}",
            "bad.yaml:3: running_momentum belongs to loss beta_dpo and bco, but loss is sigmoid. Take it out.",
        ),
        (
            "loss_parameters: {dpop_penalty: -1}",
            "bad.yaml:4: stage2.loss_parameters.dpop_penalty is -1.0, but must be >= 0. Try 50; DPO is 0.",
        ),
        ("loss: ld_dpo", "bad.yaml:3: loss ld_dpo reads the reference token by token, and the cache holds sums. Write"),
        (
            "{loss: simpo, reference: live}",
            "bad.yaml:3: reference is live, but loss simpo has no reference: it would run for the log alone. Write",
        ),
        ("cooling: {detach: 1}", "bad.yaml:4: stage2.cooling.detach is 1, but must be true or false."),
    ],
)
def test_stage_2_mistakes(tmp_path: Path, stage2: str, expected: str) -> None:
    text = "model: {name_or_path: m}\ndata: {train: rows.jsonl}\nstage2:\n  " + stage2 + "\n"
    assert complaint(tmp_path, text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "bad.yaml: the recipe is empty."),
        ("# nothing\n", "bad.yaml: the recipe is empty."),
        ("- model\n", "bad.yaml:1: a recipe is keys and values"),
        (
            "model: {name_or_path: m}\nstage2: {}\n",
            "bad.yaml:1: 'data' is missing. Add it; it is a section with the keys train",
        ),
        (
            "model: {}\ndata: {train: a}\nstage2: {}\n",
            "bad.yaml:1: 'model.name_or_path' is missing. Add it; it is a local directory or a hub name.",
        ),
        ("model: {name_or_path: m}\ndata: {train: a}\n", "bad.yaml:1: no stage is left, so nothing would train."),
        (
            "model: {name_or_path: m}\ndata:\n  train: []\nstage1: {}\n",
            "bad.yaml:3: data.train is [], which names nothing.",
        ),
        (
            "model:\n  name_or_path: m\n  quantization: {}\ndata: {train: a}\nstage1: {}\n",
            "bad.yaml:1: model.quantization freezes",
        ),
    ],
)
def test_recipes_that_lack_something(tmp_path: Path, text: str, expected: str) -> None:
    assert complaint(tmp_path, text).startswith(expected)


def test_a_share_of_one_leaves_stage_2_without_rows(tmp_path: Path) -> None:
    text = "model: {name_or_path: m}\ndata: {train: a, stage1_fraction: 1}\nstage1: {}\n"
    assert read_recipe(written(tmp_path, text)).data.stage1_fraction == 1
    assert "stage 2 would have no rows" in complaint(tmp_path, text + "stage2: {}\n")


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL.replace("stage2: {}", "stage2: {bet: 1, loss: x}") + "seeed: 1\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2  # sections with an unknown key are not checked further
    assert all(line.startswith(f"{path}:") for line in lines)


def test_missing_file_offers_its_neighbours(tmp_path: Path) -> None:
    written(tmp_path, MINIMAL, "recipe.yaml")
    with pytest.raises(ConfigError, match=r"there is no such recipe\. Did you mean .*recipe\.yaml"):
        read_recipe(tmp_path / "recpie.yaml")
    with pytest.raises(ConfigError, match=r"there is no such recipe\. There is no directory .*/nowhere\."):
        read_recipe(tmp_path / "nowhere" / "recipe.yaml")


@pytest.mark.parametrize(
    "stage2",
    [
        "loss: {sigmoid: 0.8, bco: 0.2, nll: 1}\n  loss_parameters: {running_momentum: 0.5}",
        "loss: ld_dpo\n  reference: live",
        "loss: {simpo: 1, nll: 0.5}\n  loss_parameters: {simpo_margin: 1.0}",
    ],
)
def test_losses_read_back_equal(tmp_path: Path, stage2: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {train: rows.jsonl}\nstage2:\n  " + stage2 + "\n")
    recipe = read_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert read_recipe(again) == recipe


def test_a_loss_may_come_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {train: rows.jsonl}\nstage2: {}\n")
    words = ["--loss", "{dpop: 1, nll: 0.5}", "--dpop_penalty", "5"]
    stage2 = read_recipe(path, words).stage2
    assert stage2 is not None
    assert stage2.loss == {"dpop": 1.0, "nll": 0.5}
    assert stage2.loss_parameters.dpop_penalty == 5


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"seed: 1\noutput_dir: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: not UTF-8"):
        read_recipe(path)
    path.write_bytes(b"seed: 1\n\x00")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2: the character '\\x00'"):
        read_recipe(path)
    path.write_bytes(b" " * 1_000_001)
    with pytest.raises(ConfigError, match="too many for a recipe"):
        read_recipe(path)
    with pytest.raises(ConfigError, match="this is a directory, and a recipe is a YAML file"):
        read_recipe(tmp_path)


def test_exponents_are_numbers_and_anchors_work(tmp_path: Path) -> None:
    text = MINIMAL + "trainer: &all {learning_rate: 1e-6, max_steps: 2}\nstage1: {trainer: {<<: *all, max_steps: 3}}\n"
    recipe = read_recipe(written(tmp_path, text), trainer_fields=lambda: {"learning_rate": float, "max_steps": int})
    assert recipe.trainer == {"learning_rate": 0.000001, "max_steps": 2}
    assert recipe.stage1 is not None
    assert recipe.stage1.trainer == {"learning_rate": 0.000001, "max_steps": 3}


def test_data_paths_start_at_the_recipe_and_models_only_where_they_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "base").mkdir()
    text = "model: {name_or_path: base}\ndata: {train: [a.jsonl, /b.jsonl], eval: c.jsonl, image_root: d}\nstage2: {}\n"
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.model.name_or_path == str(tmp_path / "base")
    assert recipe.data.train == [str(tmp_path / "a.jsonl"), "/b.jsonl"]
    assert (recipe.data.eval, recipe.data.image_root) == (str(tmp_path / "c.jsonl"), str(tmp_path / "d"))
    assert recipe.output_dir == "runs/cwdpo"


def test_settings_without_effect_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_recipe(written(tmp_path, MINIMAL + "stage1: {objective: smoothed, ceiling: 3}\n"))
    assert "stage1.ceiling has no effect with objective smoothed" in caplog.text


def test_python_objects_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"temperature\s+Value error, is -1\.0, but must be > 0"):
        CoolingConfig(temperature=-1)


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=8)
tricky = st.sampled_from(
    ["1e-6", "no", "null", "~", "1:30", "2024-01-01", "<<", "=", " x", "- a", "010", ".5", "#", ""]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | tricky
trainers = st.dictionaries(texts | tricky, scalars | st.lists(scalars, max_size=3), max_size=4)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("chosen-2tau", "chosen - 2 tau"),
        ("chosen - 2.0 * tau", "chosen - 2 tau"),
        ("gentle - 0 tau", "gentle"),
        ("quantile:0.25-1.5tau", "quantile:0.25 - 1.5 tau"),
    ],
)
def test_a_floor_rule_is_kept_in_one_spelling(written: str, kept: str) -> None:
    """Else a run could not be resumed with the same rule in another spelling."""
    assert CoolingConfig(floor=written).floor == kept
    assert CoolingConfig(floor=kept).floor == kept


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(trainer=trainers, floor=st.floats(-1e6, 0) | st.just("mean"), seed=st.integers(0, 2**32 - 1))
def test_what_is_written_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, trainer: dict[str, object], floor: float | str, seed: int
) -> None:
    recipe = Recipe(
        model=ModelConfig(name_or_path="m"),
        data=DataConfig(train=["/a.jsonl", "/b.jsonl"]),
        stage1=Stage1Config(trainer=trainer),
        stage2=Stage2Config(cooling=CoolingConfig(floor=floor)),
        seed=seed,
    )
    path = written(tmp_path_factory.getbasetemp(), dump_recipe(recipe), "dumped.yaml")
    assert read_recipe(path) == recipe


def test_plain_yaml_readers_understand_what_is_written() -> None:
    recipe = Recipe(model=ModelConfig(name_or_path="m"), data=DataConfig(train="/a"), stage2=Stage2Config(), seed=3)
    other = yaml.safe_load(dump_recipe(recipe))
    assert (other["seed"], other["stage2"]["cooling"]["floor"], other["stage1"]) == (3, "chosen - 2 tau", None)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(ConfigError):
        located_yaml.load(text, "x.yaml")


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ("{groups: [chosen, blind]}", r"probes\.groups holds 'blind', which is not an answer group\. .*blank"),
        ("{groups: [chosen, chosen]}", "twice"),
        ("{stop_on: [displacement]}", "Did you mean likelihood_displacement"),
        ("{every: sometimes}", r"probes\.every is 'sometimes', but must be a whole number or auto\."),
        ("{every: 0}", r"probes\.every is 0, .* write 1 or more, or auto\. To read nothing write `probes: null`\."),
        ("{rows: 0}", "probes: null"),
        ("{tolerance: -1}", "must be >= 0"),
    ],
)
def test_probes_are_checked(tmp_path: Path, probes: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{name_or_path: m}}\ndata: {{train: t}}\nstage2: {{}}\nprobes: {probes}\n")
    with pytest.raises(ConfigError, match=rf"recipe\.yaml:4: .*{message}"):
        read_recipe(path)


def test_probes_null_is_off_and_all_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name_or_path: m}\ndata: {train: t}\nstage2: {}\nprobes: null\n")
    assert read_recipe(path).probes is None
    path.write_text("model: {name_or_path: m}\ndata: {train: t}\nstage2: {}\nprobes: {every: 5}\n")
    found = read_recipe(path).probes
    assert found is not None
    assert (found.every, found.rows, found.groups, found.stop_on) == (5, "auto", "all", [])
