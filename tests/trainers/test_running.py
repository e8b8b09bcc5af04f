"""Running means over steps by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from cwdpo.losses import Pairs
from cwdpo.trainers.running import RunningMeans


def pairs(chosen: list[float], rejected: list[float]) -> Pairs:
    """Half cooled."""
    one = torch.ones(len(chosen))
    return Pairs(torch.tensor(chosen), torch.tensor(rejected), one / 2, -one, -one, one, one)


def test_a_step_counts_once_with_all_its_pairs() -> None:
    """beta = 0.5: rewards 0.5 * Delta_w and 0.5 * 0.5 * Delta_l; the mean is over three pairs, not over two parts."""
    none: Any = None
    running = RunningMeans(beta=0.5, momentum=0.75)
    running.add(pairs([4.0, 2.0], [-4.0, 0.0]))
    running.add(pairs([3.0], [-2.0]))
    assert (running.reward, running.margin) == (0.0, 0.0)
    running.on_step_end(none, none, none)
    reward = ((2.0 - 1.0) / 2 + (1.0 - 0.0) / 2 + (1.5 - 0.5) / 2) / 3
    margin = ((2.0 + 1.0) + (1.0 + 0.0) + (1.5 + 0.5)) / 3
    assert running.reward == pytest.approx(0.25 * reward)
    assert running.margin == pytest.approx(0.25 * margin)
    running.add(pairs([8.0], [0.0]))
    running.on_step_end(none, none, none)
    assert running.reward == pytest.approx(0.75 * 0.25 * reward + 0.25 * 2.0)
    assert running.margin == pytest.approx(0.75 * 0.25 * margin + 0.25 * 4.0)
    assert running.state()["attributes"] == {"reward": running.reward, "margin": running.margin}


@pytest.mark.slow
def test_a_skipped_step_does_not_count(make_trainer: Callable[..., Any]) -> None:
    """Its gradient alone is not finite: its rewards are."""

    class SpoilSecondStep(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == 2:
                next(w for w in model.parameters() if w.grad is not None).grad.fill_(torch.nan)

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((trainer.running.reward, trainer.running.margin))

    seen: list[tuple[float, float]] = []
    trainer = make_trainer(
        2,
        loss="bco",
        cooling=False,
        max_steps=4,
        on_nonfinite="skip",
        learning_rate=1e-2,
        callbacks=[SpoilSecondStep()],
    )
    trainer.add_callback(Look())
    trainer.train()
    assert trainer.finite.skipped == 1
    assert seen[1] == seen[0]
    assert len({*seen}) == 3
