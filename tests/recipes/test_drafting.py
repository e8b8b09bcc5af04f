"""A drafted recipe: what it chooses for rows and machine, that it reads back, and what it takes from other tools."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cwdpo.config.foreign import Translated
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.check import RowReport
from cwdpo.data.reading import split_rows
from cwdpo.errors import ConfigError
from cwdpo.recipes.drafting import Draft, draft_recipe
from cwdpo.recipes.memory import Device, ModelFacts

CPU = Device("CPU", 16 * 10**9, False, False)
GPU = Device("GPU", 24 * 10**9, True, True)
SMALL = Device("GPU", 8 * 10**9, True, True)


def facts(billions: float = 3.0) -> ModelFacts:
    weights = int(billions * 1e9)
    return {
        "name_or_path": "owner/Model-3B",
        "class": "Model",
        "dtype": "bfloat16",
        "max_length": 4096,
        "parts": {"language model": {"total": weights, "trainable": weights}},
        "lora": {"r": 16, "targets": ["q"], "weights": weights // 100},
        "shape": {"hidden_size": 2048, "num_layers": 36, "vocabulary_size": 150_000},
    }


def reports(number: int, *, gentle: int = 0, without: int = 0) -> list[RowReport]:
    return [
        RowReport(
            source=f"rows.jsonl:{i + 1}",
            format="trl",
            num_images=1,
            num_rejected=int(i >= without),
            has_gentle=i < gentle,
            text_tokens=200,
            image_tokens=100,
            chosen_tokens=100,
        )
        for i in range(number)
    ]


def draft(rows: list[RowReport], tmp_path: Path, device: Device = GPU, **more: Any) -> tuple[Draft, Recipe]:
    chosen = {"data": ["rows.jsonl"], "facts": facts(), "beside": tmp_path} | more
    found = draft_recipe(rows=rows, device=device, **chosen)
    (tmp_path / "recipe.yaml").write_text(found.text)
    return found, read_recipe(tmp_path / "recipe.yaml")


def test_a_gpu_with_room(tmp_path: Path) -> None:
    found, recipe = draft(reports(5_000), tmp_path)
    assert recipe.model.dtype == "bfloat16"
    assert recipe.trainer["bf16"] is True
    assert recipe.trainer["activation_checkpointing"] == "auto"
    assert recipe.trainer["per_device_train_batch_size"] * recipe.trainer["gradient_accumulation_steps"] == 32
    assert recipe.trainer["per_device_train_batch_size"] == 8
    assert recipe.model.quantization is None
    assert recipe.model.lora is not None
    assert recipe.stage1 is not None
    assert recipe.stage2 is not None
    assert recipe.stage1.trainer == {"learning_rate": 1e-4, "num_train_epochs": 1}
    assert recipe.stage2.trainer == {"learning_rate": 5e-6, "num_train_epochs": 1}
    assert recipe.data.stage1_fraction == 0.75
    assert len(found.notes) == 1


def test_a_run_is_not_called_as_its_base(tmp_path: Path) -> None:
    assert draft(reports(60), tmp_path)[1].output_dir == "runs/model-3b-cwdpo"
    assert draft(reports(60), tmp_path, facts=facts() | {"name_or_path": "/"})[1].output_dir == "runs/model-cwdpo"


def test_a_small_gpu_quantises(tmp_path: Path) -> None:
    _, recipe = draft(reports(5_000), tmp_path, SMALL)
    assert recipe.model.quantization is not None
    assert recipe.model.quantization.bits == 4
    assert recipe.trainer["per_device_train_batch_size"] == 1
    assert recipe.trainer["gradient_accumulation_steps"] == 32


def test_a_model_that_does_not_fit_is_said_so(tmp_path: Path) -> None:
    found, _ = draft(reports(100), tmp_path, SMALL, facts=facts(70))
    assert "A step needs about" in found.notes[-1]
    assert "GPU has 8 GB. Take a smaller model" in found.notes[-1]


def test_a_cpu_trains_in_float32(tmp_path: Path) -> None:
    found, recipe = draft(reports(60), tmp_path, CPU, facts=facts(0.001))
    assert recipe.model.dtype == "float32"
    assert "bf16" not in recipe.trainer
    assert "on a GPU: bfloat16" in found.text


def test_few_rows_take_small_steps_and_three_epochs(tmp_path: Path) -> None:
    _, recipe = draft(reports(60), tmp_path, CPU, facts=facts(0.001))
    assert recipe.trainer["per_device_train_batch_size"] * recipe.trainer["gradient_accumulation_steps"] == 4
    assert recipe.stage1 is not None
    assert recipe.stage1.trainer["num_train_epochs"] == 3


@pytest.mark.parametrize(("gentle", "objective"), [(0, "plain"), (1, "plain"), (60, "constrained")])
def test_the_objective_follows_the_gentle_answers(tmp_path: Path, gentle: int, objective: str) -> None:
    found, recipe = draft(reports(60, gentle=gentle), tmp_path)
    assert recipe.stage1 is not None
    assert recipe.stage1.objective == objective
    command = "`cwdpo negatives gentle rows.jsonl --out rows_gentle.jsonl`"
    assert any(command in note for note in found.notes) == (objective == "plain")


def test_rows_without_rejected_answers_are_for_stage_1(tmp_path: Path) -> None:
    found, recipe = draft(reports(10, without=10), tmp_path)
    assert list(recipe.stages) == ["stage1"]
    assert "stage 1 alone" in found.notes[0]
    rows = reports(10)
    second = split_rows(rows, 0.75, 0)[1]
    lacking = [dataclasses.replace(row, num_rejected=0) if row is second[0] else row for row in rows]
    found, recipe = draft(lacking, tmp_path)
    assert list(recipe.stages) == ["stage1", "stage2"]
    begin = f"1 of the {len(second)} rows of stage 2 have no `rejected` answer ({second[0].source} first)"
    assert found.notes[0].startswith(begin)
    lacking = [row if row in second else dataclasses.replace(row, num_rejected=0) for row in rows]
    assert "rejected" not in draft(lacking, tmp_path)[0].notes[0]


def test_a_stage_has_a_row(tmp_path: Path) -> None:
    assert list(draft(reports(1), tmp_path)[1].stages) == ["stage1"]
    assert draft(reports(2), tmp_path)[1].data.stage1_fraction == 0.5
    with pytest.raises(ConfigError, match="no usable row"):
        draft([], tmp_path)


def test_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    found = draft_recipe(
        data=["data/a.jsonl"], rows=reports(8), facts=facts(), device=GPU, beside=Path("sub"), eval_data="e.jsonl"
    )
    data = yaml.safe_load(found.text)["data"]
    assert (data["train"], data["eval"]) == ("../data/a.jsonl", "../e.jsonl")


def theirs(**settings: Any) -> Translated:
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return Translated("TRL", names, {f"theirs_{name.rpartition('.')[2]}": name for name in names}, {"odd": "why"})


def test_another_tools_settings_come_first(tmp_path: Path) -> None:
    foreign = theirs(stage2__beta=0.4, trainer__per_device_train_batch_size=2, trainer__warmup_steps=0.1)
    found, recipe = draft(reports(5_000), tmp_path, foreign=foreign)
    assert recipe.stage2 is not None
    assert recipe.stage2.beta == 0.4
    assert recipe.trainer["per_device_train_batch_size"] == 2
    assert recipe.trainer["gradient_accumulation_steps"] == 1
    assert recipe.trainer["warmup_steps"] == 0.1
    assert "# TRL: theirs_beta" in found.text
    assert any("without a counterpart here: odd (why)" in note for note in found.notes)


def test_what_their_file_does_not_say_is_compared_with_what_their_tool_does(tmp_path: Path) -> None:
    foreign = dataclasses.replace(
        theirs(model__lora={}, model__lora__alpha=16),
        renamed={"use_peft": "model.lora"},
        defaults={
            "stage2.trainer.num_train_epochs": 3,
            "trainer.lr_scheduler_type": "cosine",  # as here
            "trainer.weight_decay": 0.1,
            "model.lora.dropout": 0.05,
        },
    )
    found, _ = draft(reports(5_000), tmp_path, foreign=foreign)
    head = " ".join(line.removeprefix("# ") for line in found.text.partition("\n\n")[0].splitlines())
    assert head.endswith(
        "Not in the TRL configuration, so cwdpo's own: num_train_epochs 1 (TRL: 3), weight_decay as the Trainer has it "
        "(TRL: 0.1), lora.dropout 0.0 (TRL: 0.05)."
    )
    assert re.search(r"alpha: 16 +# as TRL does by default", found.text)
    weights = {"model.lora": None, "model.lora.dropout": 0.05}
    found, _ = draft(reports(5_000), tmp_path, foreign=dataclasses.replace(theirs(), defaults=weights))
    assert "cwdpo's own: LoRA (TRL: all weights).\n" in found.text


def test_all_weights_learn_at_their_own_rate(tmp_path: Path) -> None:
    _, recipe = draft(reports(5_000), tmp_path, foreign=theirs(model__lora=None))
    assert recipe.model.lora is None
    assert recipe.stage1 is not None
    assert recipe.stage2 is not None
    assert (recipe.stage1.trainer["learning_rate"], recipe.stage2.trainer["learning_rate"]) == (1e-5, 5e-7)


@pytest.mark.parametrize(
    ("name", "value", "device", "why"),
    [
        ("trainer.bf16", True, CPU, "there is no GPU here"),
        ("model.dtype", "bfloat16", CPU, "float32, as there is no GPU here"),
        ("model.quantization", {"bits": 4}, CPU, "there is no GPU here"),
        ("trainer.eval_strategy", "steps", GPU, "name held-out rows in data.eval first"),
        ("data.max_length", 100, GPU, "the longest row has 400 tokens, and nothing is cut here"),
        ("data.max_length", 9000, GPU, "the model's own limit is 4096"),
        ("data.nothing", 1, GPU, "nothing"),
    ],
)
def test_what_would_stop_this_run_is_left_out_and_named(
    tmp_path: Path, name: str, value: object, device: Device, why: str
) -> None:
    found, recipe = draft(reports(60), tmp_path, device, foreign=theirs(**{name.replace(".", "__"): value}))
    assert recipe.data.max_length is None
    assert why in " ".join(found.notes)


def test_a_wrong_value_of_theirs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--from, stage2.beta: stage2.beta is -1.0, but must be > 0"):
        draft(reports(60), tmp_path, foreign=theirs(stage2__beta=-1))
