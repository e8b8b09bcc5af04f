"""A training begins with nothing of the one before it on the same trainer, and keeps nothing that nobody asks for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from cwdpo.trainers.finite import FiniteSteps
from cwdpo.trainers.running import RunningMeans
from cwdpo.trainers.step_metrics import TokenCount

Make = Callable[..., Any]


class SpoilSecondStep(TrainerCallback):
    """Makes its gradient NaN, and none of its losses."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == 2:
            next(w for w in model.parameters() if w.grad is not None).grad.fill_(torch.nan)


def lines(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.slow
def test_the_same_again(make_trainer: Make) -> None:
    """Without a learning rate, a second training sees what the first saw; its last step is left without a line."""
    trainer = make_trainer(
        2,
        loss="bco",
        learning_rate=0.0,
        max_steps=5,
        logging_steps=2,
        on_nonfinite="skip",
        callbacks=[SpoilSecondStep()],
    )
    trainer.train()
    first = lines(trainer)
    assert [line["skipped_steps"] for line in first] == [1, 1]
    trainer.train()
    assert lines(trainer) == first


@pytest.mark.slow
def test_an_error_leaves_nothing_to_the_next_training(make_trainer: Make) -> None:
    class Boom(TrainerCallback):
        on = True

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.on and state.global_step == 3:
                raise RuntimeError("boom")

    boom = Boom()
    trainer = make_trainer(1, learning_rate=0.0, max_steps=4, logging_steps=4, callbacks=[boom])
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    boom.on = False
    trainer.train()
    undisturbed = make_trainer(1, learning_rate=0.0, max_steps=4, logging_steps=4)
    undisturbed.train()
    assert lines(trainer) == lines(undisturbed)


class LogsTheSecondStep(TrainerCallback):
    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_log = state.global_step == 2


@pytest.mark.slow
def test_values_that_are_not_logged_are_kept_for_a_step(make_trainer: Make) -> None:
    settings: Any = {"logging_strategy": "no", "on_nonfinite": "skip"}
    trainer = make_trainer(2, max_steps=3, callbacks=[LogsTheSecondStep()], **settings)
    trainer.train()
    rows = trainer.args.per_device_train_batch_size
    assert sum(len(part) for part in trainer._metrics["train"]._values["rewards/margins"]) == rows  # of the last step
    [second] = [line for line in trainer.state.log_history if "loss" in line]
    whole = make_trainer(2, max_steps=2, out="whole", logging_steps=1)
    whole.train()
    same = [line for line in whole.state.log_history if "loss" in line][1]
    assert second["rewards/margins"] == same["rewards/margins"]


@pytest.mark.parametrize(
    ("callback", "kept"),
    [
        (RunningMeans(beta=0.1, momentum=0.9), {"reward": 0.5, "margin": 0.25}),
        (TokenCount(), {"before": 7}),
        (FiniteSteps(None, skips=True), {"skipped": 2}),  # type: ignore[arg-type]
    ],
)
def test_only_a_checkpoint_is_gone_on_from(callback: Any, kept: dict[str, float]) -> None:
    """The Trainer makes its fresh state of what callbacks know."""
    assert isinstance(callback, ExportableState)
    for name, value in kept.items():
        setattr(callback, name, value)
    state = TrainerState(stateful_callbacks=[callback])
    state.global_step = 3
    callback.on_train_begin(None, state, TrainerControl())
    assert callback.state()["attributes"] == kept
    state.global_step = 0
    callback.on_train_begin(None, state, TrainerControl())
    assert callback.state()["attributes"] == dict.fromkeys(kept, 0)


def test_all_that_counts_steps_forgets_those_that_are_skipped(make_trainer: Make) -> None:
    trainer = make_trainer(2, loss="bco", on_policy={"refresh": "auto"}, on_nonfinite="skip")
    staleness = trainer.on_policy._staleness
    staleness.add(torch.tensor([0.5]))
    for forget in trainer.finite._on_skip:
        forget()
    staleness.end_step(trainer.accelerator)
    assert staleness.weights == []
