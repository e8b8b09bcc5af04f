"""Running means over steps by hand."""

from typing import Any

import pytest
import torch

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
