"""Updates that rounding loses are counted, and said where they are most."""

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cwdpo.models.loading import load_policy
from cwdpo.trainers.rounding import LostUpdates, sample


def step(counter: LostUpdates, weight: nn.Parameter, update: float, *, rate: float = 1.0, highest: float = 1.0) -> None:
    model = SimpleNamespace(parameters=lambda: iter([weight]))
    optimizer = SimpleNamespace(param_groups=[{"lr": rate}])
    args: Any = SimpleNamespace(learning_rate=highest)
    state: Any = SimpleNamespace(is_world_process_zero=True)
    control: Any = None
    counter.on_pre_optimizer_step(args, state, control, model=model, optimizer=optimizer)
    weight.data += update * (weight.grad != 0)  # type: ignore[operator]
    counter.on_optimizer_step(args, state, control)


def weight_of(values: list[float], gradients: list[float], dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    weight = nn.Parameter(torch.tensor(values, dtype=dtype))
    weight.grad = torch.tensor(gradients, dtype=dtype)
    return weight


def test_an_update_below_half_a_unit_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    """Between 1 and 2 the numbers of bfloat16 are 1/128 apart, between 1/4 and 1/2 they are 1/512 apart."""
    counter = LostUpdates()
    values, gradients = [1.0, 1.5, 0.25, 1.0], [1.0, -1.0, 1.0, 0.0]
    for number in range(1, 4):
        assert not caplog.text
        step(counter, weight_of(values, gradients), 1 / 300)  # 1.0 and 1.5 stay, 0.25 moves, and one should not move
        assert (counter.lost, counter.wanted) == (2 * number, 3 * number)
    assert counter.share == pytest.approx(2 / 3)
    assert (
        "67 % of the updates of 3 steps were lost: the weights are in bfloat16, and at a learning rate of 1 "
        in caplog.text
    )
    step(counter, weight_of(values, gradients), 1 / 300)
    assert counter.wanted == 9  # the first three alone


@pytest.mark.parametrize(("update", "share"), [(1 / 200, 0.0), (1 / 300, 0.5)])
def test_half_is_not_most(update: float, share: float, caplog: pytest.LogCaptureFixture) -> None:
    counter = LostUpdates()
    for _ in range(3):
        step(counter, weight_of([1.0, 0.25], [1.0, 1.0]), update)
    assert counter.share == share
    assert not caplog.text


def test_warmup_and_float32_are_passed_over() -> None:
    counter = LostUpdates()
    step(counter, weight_of([1.0], [1.0]), 0.0, rate=0.0)
    step(counter, weight_of([1.0], [1.0]), 0.0, rate=0.4)
    step(counter, weight_of([1.0], [1.0], torch.float32), 0.0)
    assert counter.share is None
    step(counter, weight_of([1.0], [1.0], torch.float16), 0.0, rate=0.5)
    assert counter.share == 1.0


def test_a_sample_is_spread_over_the_weight() -> None:
    assert len(sample(torch.zeros(5, 5))) == 25
    chosen = sample(torch.arange(10_000))
    assert len(chosen) == 3334
    assert chosen[-1] == 9999


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "rate", "lost"), [("bfloat16", 1e-6, True), ("bfloat16", 1e-2, False), ("float32", 1e-6, False)]
)
def test_small_steps_of_bfloat16_weights_are_warned_of(
    dtype: str, rate: float, lost: bool, make_trainer: Callable[..., Any], tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    model = load_policy(tiny("llava"), dtype=dtype, freeze_vision=False)
    trainer = make_trainer(2, model=model, max_steps=3, learning_rate=rate, lr_scheduler_type="constant", cooling=False)
    trainer.train()
    assert ("of the updates of 3 steps were lost" in caplog.text) is lost
    assert trainer.lost_updates.share == (None if dtype == "float32" else pytest.approx(1.0 if lost else 0.0, abs=0.1))
