"""``evaluate`` and ``predict`` on rows that the trainer was not made with, before and after training."""

import math
import statistics
from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch

from cwdpo.batch import Role
from cwdpo.data.collate import RowDataset

Make = Callable[..., Any]

COLOURS = ["red", "blue", "green", "pink", "grey"]
NEW: list[dict[str, Any]] = [
    {
        "prompt": f"Which colour is number {n}?",
        "chosen": f"The colour is {colour}.",
        "rejected": f"A cat of {colour} ice.",
        "negatives": [f"There are {n} birds on a hill."] * (n % 2),
        "gentle": f"The colour was {colour}.",
    }
    for n, colour in enumerate(COLOURS)
]
FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: NEW,
    "dataset": lambda: datasets.Dataset.from_list(NEW),
    "rows": lambda: RowDataset(NEW),
}
MOVING = {"max_steps": 3, "learning_rate": 1e-2}


def batch_of(trainer: Any, records: Any = NEW) -> Any:
    rows = RowDataset(records)
    return trainer.data_collator([rows[i] for i in range(len(rows))])


def logprobs(trainer: Any, batch: Any) -> tuple[list[float], list[float]]:
    with torch.no_grad():
        found = trainer.engine.logprobs(trainer.model.eval(), batch)
    return found.total.tolist(), found.mean.tolist()


def by_row(batch: Any, values: list[float], role: Role) -> list[float]:
    """The mean of a role's values in each row."""
    of_row: dict[int, list[float]] = {}
    for owner, is_role, value in zip(batch["prompt_index"].tolist(), batch["roles"].tolist(), values, strict=True):
        if is_role == role:
            of_row.setdefault(owner, []).append(value)
    return [statistics.fmean(of_row[row]) if row in of_row else math.nan for row in range(len(batch["prompts"]))]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stage", [1, 2])
def test_rows_in_any_form_before_training(make_trainer: Make, stage: int, form: str) -> None:
    trainer = make_trainer(stage, out="new", **MOVING)
    found = trainer.evaluate(FORMS[form]())
    named = make_trainer(stage, out="named", eval_rows=NEW, **MOVING).evaluate()
    assert found["eval_loss"] == pytest.approx(named["eval_loss"], abs=1e-6)
    _, means = logprobs(trainer, batch := batch_of(trainer))
    chosen = by_row(batch, means, Role.CHOSEN)
    assert found["eval_logps_mean/chosen"] == pytest.approx(statistics.fmean(chosen), abs=1e-5)
    assert trainer.predict(FORMS[form]()).predictions.shape == (5, 2)
    trainer.train()  # as if nobody had asked
    assert trainer.state.global_step == 3


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_several_sets_by_name(make_trainer: Make, stage: int) -> None:
    trainer = make_trainer(stage)
    found = trainer.evaluate({"few": NEW[:2], "more": datasets.Dataset.from_list(NEW[2:])})
    for name, some in (("few", NEW[:2]), ("more", NEW[2:])):
        alone = trainer.evaluate(some)["eval_logps_mean/chosen"]
        assert found[f"eval_{name}_logps_mean/chosen"] == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
def test_predictions_of_stage_one_are_mean_log_probs(make_trainer: Make) -> None:
    some = [*NEW[:3], {name: value for name, value in NEW[3].items() if name != "gentle"}]
    trainer = make_trainer(1, per_device_eval_batch_size=3, **MOVING)
    trainer.train()
    output = trainer.predict(some, metric_key_prefix="new")
    _, means = logprobs(trainer, batch := batch_of(trainer, some))
    assert output.predictions[:, 0].tolist() == pytest.approx(by_row(batch, means, Role.CHOSEN), abs=1e-5)
    gentle = by_row(batch, means, Role.GENTLE)
    assert output.predictions[:, 1].tolist() == pytest.approx(gentle, abs=1e-5, nan_ok=True)
    assert math.isnan(gentle[3])
    assert output.label_ids.tolist() == [0, 0, 0, 0]
    assert output.metrics["new_logps_mean/chosen"] == pytest.approx(output.predictions[:, 0].mean(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "reference"), [(True, "cached"), (True, "live"), (False, "live")])
def test_predictions_of_stage_two_are_rewards_against_the_start(make_trainer: Make, lora: bool, reference: str) -> None:
    """Also where the rows are new after training: the model that it started from can still be asked."""
    trainer = make_trainer(2, lora=lora, reference=reference, beta=0.3, **MOVING)
    start, _ = logprobs(trainer, batch := batch_of(trainer))
    trainer.train()
    now, _ = logprobs(trainer, batch)
    rewards = [0.3 * (one - other) for one, other in zip(now, start, strict=True)]
    output = trainer.predict(NEW)
    assert output.predictions[:, 0].tolist() == pytest.approx(by_row(batch, rewards, Role.CHOSEN), abs=1e-4)
    assert output.predictions[:, 1].tolist() == pytest.approx(by_row(batch, rewards, Role.REJECTED), abs=1e-4)
    assert max(map(abs, rewards)) > 0.01
    assert trainer.evaluate(NEW)["eval_rewards/chosen"] == pytest.approx(output.predictions[:, 0].mean(), abs=1e-5)


def test_a_starting_model_that_is_gone_is_said_to_be(make_trainer: Make) -> None:
    trainer = make_trainer(2, eval_rows=NEW[:2], **MOVING)
    trainer.train()
    with pytest.raises(ValueError, match=r"row 2 of the new rows.*reference: live.*eval_dataset before training"):
        trainer.evaluate(NEW)
    with pytest.raises(ValueError, match="row 2 of the new rows"):
        trainer.predict(NEW)
    named = trainer.evaluate()
    assert trainer.evaluate(NEW[:2])["eval_loss"] == pytest.approx(named["eval_loss"], abs=1e-6)  # known by content
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0


def test_persistent_workers_do_not_give_the_old_rows(make_trainer: Make) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(1, eval_rows=NEW[:1], **workers)
    trainer.evaluate()
    found = trainer.evaluate(NEW[1:])["eval_logps_mean/chosen"]
    assert found == pytest.approx(make_trainer(1, out="other").evaluate(NEW[1:])["eval_logps_mean/chosen"], abs=1e-6)


def test_what_has_no_rows_is_refused(make_trainer: Make) -> None:
    trainer = make_trainer(1)
    with pytest.raises(ValueError, match="requires an eval_dataset"):
        trainer.evaluate()
    with pytest.raises(
        ValueError, match=r"test_dataset is a dict, with the splits few\. Give one of them: test_dataset=dataset"
    ):
        trainer.predict({"few": NEW})
    with pytest.raises(ValueError, match=r"eval_dataset is the name 'rows\.jsonl', and not rows"):
        trainer.evaluate("rows.jsonl")
