"""``cwdpo train`` from outside: settings of the Trainer reach it, or are refused before anything is loaded."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import disc_data

from cwdpo.records import RunDirectory

Train = Callable[..., tuple[int, str]]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_settings_of_the_method_are_taken_too(train: Train, tmp_path: Path) -> None:
    code, err = train(trainer={"max_tokens_per_batch": 64, "length_buckets": True})
    assert (code, err) == (0, "")
    assert [(line["stage"], line["step"]) for line in lines(tmp_path / "run")] == [("stage1", 1), ("stage2", 1)]


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"learning_rate": "abc"}, "/r.yaml:14: trainer.learning_rate is 'abc', but must be a number."),
        ({"learning_rate": -1}, "/r.yaml:14: trainer.learning_rate is -1, but must be > 0 and <= 1. Write a rate"),
        ({"max_steps": "abc"}, "/r.yaml:10: trainer.max_steps is 'abc', but must be a whole number."),
        ({"max_steps": 1.5}, "/r.yaml:10: trainer.max_steps is 1.5, but must be a whole number."),
        (
            {"per_device_train_batch_size": 0},
            "/r.yaml:11: trainer.per_device_train_batch_size is 0, but must be >= 1.",
        ),
        (
            {"eval_strategy": "epochh"},
            "trainer.eval_strategy is 'epochh', but must be one of no, steps, epoch. Did you mean epoch?",
        ),
        ({"eval_strategy": False}, "trainer.eval_strategy is false, but must be one of no, steps, epoch. YAML reads"),
        ({"eval_strategy": "epoch"}, "trainer.eval_strategy is epoch, but the recipe has no data.eval."),
        ({"optim": "adamww"}, "trainer.optim is 'adamww', but must be one of adamw_torch, "),
        ({"optim": "adamw"}, " and 21 more. Did you mean adamw_torch?"),
        ({"optim": "adamw_bnb_8bit"}, "stage1 cannot use trainer.optim, which is 'adamw_bnb_8bit': "),
        ({"report_to": "wandb"}, "trainer.report_to names `wandb`, which is not installed"),
        (
            {"report_to": ["wandbb"]},
            "trainer.report_to: unknown logger `wandbb`. Did you mean `wandb`?",
        ),
        (
            {"load_best_model_at_end": True},
            "trainer.load_best_model_at_end chooses among checkpoints that are evaluated, but in stage1 eval_strategy",
        ),
        ({"deepspeed": "ds.json"}, "trainer.deepspeed is 'ds.json', but there is no such file. Correct the path."),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "stage1 cannot use trainer.lr_scheduler_type, which is 'cosine"),
        ({"fp16": True, "use_cpu": False}, "trainer.fp16 needs a GPU, and there is none here."),
        ({"fp16": True}, "trainer.fp16 has no effect with use_cpu, as it needs a GPU. Take it out, or write `bf16"),
        ({"bf16": True, "fp16": True}, "trainer.fp16 needs a GPU, and there is none here."),
        ({"max_steps": -1, "num_train_epochs": 0}, "trainer.num_train_epochs is 0, so stage1 would train for no step."),
        ({"max_steps": 0}, "trainer.max_steps is 0, so stage1 would train for no step."),
        ({"engine": "plain"}, "'trainer.engine' is not set here. Write it at the top of the recipe: `engine: ...`."),
        ({"length_buckets": "yes"}, "trainer.length_buckets is 'yes', but must be true or false."),
        ({"gradient_checkpointing_kwargs": 3}, "but must be a section of keys and values or text or null."),
        ({"max_tokens_per_batch": 0}, "max_tokens_per_batch is 0, but must be at least 1. No limit: leave it out."),
    ],
)
def test_wrong_trainer_settings_are_reported_before_anything_is_loaded_or_written(
    settings: dict[str, Any], expected: str, train: Train, tmp_path: Path
) -> None:
    code, err = train(trainer=settings)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--stage2.trainer", "{learning_rate: abc}"], "--stage2.trainer: stage2.trainer.learning_rate is 'abc', but"),
        (
            ["--stage2.trainer.max_steps", "0"],
            "--stage2.trainer.max_steps: stage2.trainer.max_steps is 0, so stage2 would train for no step.",
        ),
        (
            ["--stage2.trainer.report_to", "wandb"],
            "--stage2.trainer.report_to: trainer.report_to names `wandb`, which is not installed",
        ),
        (["--output_dir", "/proc/x"], "the directory /proc/x cannot be made (No such file or directory). Give another"),
    ],
)
def test_wrong_settings_of_stage_2_do_not_wait_for_stage_1(words: list[str], expected: str, train: Train) -> None:
    code, err = train(*words)
    assert code == 2
    assert err.startswith(expected)
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_start_that_failed_is_no_obstacle_to_the_next(train: Train, tmp_path: Path) -> None:
    """Whatever fails before the trainer stands leaves nothing that the corrected command would stumble over."""
    code, err = train("--model.name_or_path", tmp_path / "data")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "run").exists()
    code, err = train("--data.max_length", 100_000)  # reported by the encoder, when the model is loaded
    assert (code, err.count("\n")) == (2, 1)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []
    assert train(stage2=None)[0] == 0
    assert "name_or_path" in (tmp_path / "run" / "recipe.yaml").read_text()
    code, err = train(stage2=None)
    assert code == 2
    assert "is not empty, and nothing is overwritten" in err


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_a_run_that_another_process_writes_is_refused(train: Train, tmp_path: Path, resume: tuple[str, ...]) -> None:
    (tmp_path / "run").mkdir()
    with RunDirectory(tmp_path / "run").locked():
        code, err = train(*resume)
    assert code == 2
    assert f"another process is writing {tmp_path / 'run'}" in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_only_wrote_its_recipe_can_be_resumed_with_another(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("mine: precious\n")
    code, err = train()
    assert code == 2
    assert "is not empty" in err
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "mine: precious\n"
    assert train("--resume")[0] == 0
    assert train("--resume", "--seed", 3)[0] == 2


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("gentle", [True, False])
def test_rows_without_any_rejected_answer_are_for_stage_1_alone(gentle: bool, train: Train, tmp_path: Path) -> None:
    """That is said before all else that the first stage lacks."""
    kept = ("id", "images", "prompt", "chosen", *(["gentle"] if gentle else []))
    rows = [{key: row[key] for key in kept if key in row} for row in disc_data.records(8)]
    disc_data.write(tmp_path / "data", rows)
    code, err = train(data={"train": "data/train.jsonl", "stage1_fraction": 0.5})
    assert code == 2
    more = "" if gentle else " and stage1: {objective: plain}"
    assert f"no row of data.train has a `rejected` answer, which stage 2 needs. Write stage2: null{more} to fine" in err


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("where", ["train", "eval"])
def test_rows_that_stage_2_cannot_use_do_not_wait_for_it(where: str, train: Train, tmp_path: Path) -> None:
    rows = disc_data.records(8)
    for row in rows[1:]:
        del row["rejected"]
    disc_data.write(tmp_path / "data", disc_data.records(8))
    disc_data.write(tmp_path / "data", rows, "bad.jsonl")
    files = {"train": "data/train.jsonl"} | {where: "data/bad.jsonl"}
    code, err = train(data={**files, "stage1_fraction": 0.5})
    assert code == 2
    assert re.fullmatch(
        rf"{tmp_path}/data/bad\.jsonl:\d: the row has no `rejected` answer \(nor have \d more\), which stage 2 needs\. "
        r"Add one\.\n",
        err,
    )


@pytest.mark.slow
def test_answers_that_are_the_same_are_counted_once(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = disc_data.records(8)
    for row in rows[:6]:
        row["rejected"] = f" {row['chosen']}"
    disc_data.write(tmp_path / "data", rows)
    assert train("--data.stage1_fraction", 0.25)[0] == 0
    warned = [message for message in caplog.messages if "the same answer as `chosen` and `rejected`" in message]
    assert len(warned) == 1
    assert warned[0].startswith("6 of 8 rows have")
