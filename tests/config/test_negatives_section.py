"""The recipe's ``negatives`` section."""

from pathlib import Path
from typing import Any

import pytest

from cwdpo.config.recipe_file import dump_recipe, read_recipe
from cwdpo.errors import ConfigError

RECIPE = """\
model: {name_or_path: m}
data: {train: rows.jsonl}
stage2: {}
"""


def read(tmp_path: Path, negatives: str, text: str = RECIPE) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{text}negatives: {negatives}\n")
    return read_recipe(path)


@pytest.mark.parametrize(
    "text",
    ["null", "{}", "{refresh: 50}", "{refresh: auto, k: 4, judge: 'a.b:c'}", "{drop_easier_than: 'quantile:0.1'}",
     "{judge: same_words}", "{judge: http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct}",
     "{on_policy_fraction: [[0, 0.0], [0.5, 1]]}", "{on_policy_fraction: 0, drop_easier_than: -3}",
     "{curriculum: 0.5}", "{k: 4, curriculum: [[0, 0], [1, 1]]}"],
)  # fmt: skip
def test_what_is_written_is_read_back(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, text)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml") == recipe
    assert (recipe.negatives is None) == (text == "null")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{on_policy_fraction: 1.5}", "negatives.on_policy_fraction is 1.5"),
        ("{on_policy_fraction: [[0.5, 0], [0.2, 1]]}", "not in the order of progress"),
        ("{refresh: 0}", "negatives.refresh is 0, but must be >= 1. It counts steps: write 1 or more, epoch or auto."),
        ("{refresh: epochs}", "must be a whole number or one of epoch, auto. Did you mean epoch?"),
        ("{judge: my_rules}", "must have one colon"),
        ("{judge: some_words}", "There are also same_words, and a server as http://127.0.0.1:8000/v1#MODEL"),
        ("{judge: 'my rules:f'}", "`module:function`"),
        ("{drop_easier_than: 2}", "Did you mean -2"),
        ("{drop_easier_than: mean}", "quantile:0.1"),
        ("{temperature: 0}", "negatives.temperature is 0"),
        ("{top_p: 0}", "negatives.top_p is 0"),
        ("{curriculum: 1.5}", "negatives.curriculum is 1.5, but a level goes from 0 to 1. Write one from 0 to 1"),
        (
            "{curriculum: [[0, 0], [0, 1]]}",
            "negatives.curriculum is [[0.0, 0.0], [0.0, 1.0]], but its points are not in",
        ),
        ("{curriculum: []}", "must be a level such as 0.5"),
        ("{curriculum: atuo}", "Did you mean auto?"),
        ("{on_eror: stop}", "unknown key 'negatives.on_eror' - did you mean 'negatives.on_error'?"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "recipe.yaml:4: " in str(caught.value)


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ("null", "but probes is null. Write `probes: {every: 10}`, or `curriculum: [[0, 0], [1, 1]]`"),
        ("{}", "with `probes.every: auto` the machine's speed would choose the negatives. Write a number of steps"),
        ("{every: 10, groups: [chosen, greedy]}", "probes.groups has no negatives. Add gentle or rejected"),
    ],
)
def test_an_automatic_curriculum_needs_readings_that_come_again(tmp_path: Path, probes: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "{curriculum: auto}", f"{RECIPE}probes: {probes}\n")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("probes", ["{every: 10}", "{every: 1, groups: [rejected]}"])
def test_an_automatic_curriculum_is_read_back(tmp_path: Path, probes: str) -> None:
    recipe = read(tmp_path, "{curriculum: auto}", f"{RECIPE}probes: {probes}\n")
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert read_recipe(tmp_path / "again.yaml") == recipe


def test_a_schedule_needs_no_probes(tmp_path: Path) -> None:
    assert read(tmp_path, "{curriculum: [[0, 0], [1, 1]]}", f"{RECIPE}probes: null\n").negatives.curriculum


def test_without_stage2_it_is_told_to_do_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(tmp_path, "{}", RECIPE.replace("stage2", "stage1"))
    assert "negatives has no effect without stage2" in caplog.text
