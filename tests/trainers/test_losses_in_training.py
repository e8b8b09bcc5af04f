"""The preference losses in training: what a step is made of, and what must not matter."""

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.losses import LOSSES

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
MPO = {"sigmoid": 0.8, "bco": 0.2, "nll": 1.0}


def lines(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])


def test_each_loss_starts_at_a_reward_of_zero_and_has_a_gradient(make_trainer: Make) -> None:
    """With the values that the formulas have where Delta is 0; nll and simpo are read off the log."""
    trainer = make_trainer(2, reference="live", beta=0.5, cooling_constant=0.5)
    trainer.measure_reference()
    batch = trainer.collate([trainer.train_dataset[i] for i in range(4)])
    log2 = math.log(2)
    expected = {
        **dict.fromkeys(("sigmoid", "robust", "dpop", "beta_dpo", "ld_dpo", "anchor"), log2),
        **{"ipo": 1.0, "cal_dpo": log2 + 0.5 * 2, "apo_zero": 1.0, "apo_down": 1.0, "bco": 2 * log2},
    }
    for loss in [name for name in LOSSES if name != "image"]:
        trainer.loss_weights = {loss: 1.0}
        trainer.model.zero_grad()
        value, seen = trainer.batch_loss(trainer.model, batch)
        value.backward()
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert seen[name].abs().max().item() == pytest.approx(0, abs=1e-5)
        good, bad = seen["logps_mean/chosen"].tolist(), seen["logps_mean/rejected"].tolist()
        if loss == "nll":
            expected[loss] = -statistics.fmean(good)
        if loss == "simpo":
            margins = [0.5 * (w - 0.5 * l) - 0.5 for w, l in zip(good, bad, strict=True)]  # noqa: E741
            expected[loss] = statistics.fmean(map(softplus, (-margin for margin in margins)))
        if loss == "wpo":
            assert 0 < value.item() < 4 * log2
        else:
            assert value.item() == pytest.approx(expected[loss], abs=1e-4), loss
        assert max(p.grad.abs().max().item() for p in trainer.model.parameters() if p.grad is not None) > 1e-6


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def test_the_terms_of_mpo_by_hand(make_trainer: Make) -> None:
    """After some steps, from the engine's log-probs, which have tests of their own."""
    trainer = make_trainer(2, loss=MPO, beta=0.3, cooling_constant=0.5, max_steps=3, running_momentum=0.5)
    trainer.train()
    batch = trainer.collate([trainer.train_dataset[i] for i in range(4)])
    found = trainer.batch_loss(trainer.model, batch)[0].item()
    with torch.no_grad():
        now = trainer.engine.logprobs(trainer.model, batch)
    ratio, mean = (now.total - trainer.reference.totals(batch)).tolist(), now.mean.tolist()
    terms, shift = [], trainer.running.reward
    assert abs(shift) > 1e-4
    for w in range(0, 8, 2):  # a chosen and a rejected answer each
        good, bad = 0.3 * ratio[w], 0.3 * 0.5 * ratio[w + 1]
        terms.append(0.8 * softplus(bad - good) + 0.2 * (softplus(shift - good) + softplus(bad - shift)) - mean[w])
    assert found == pytest.approx(statistics.fmean(terms), abs=1e-5)


def test_what_is_read_of_a_step_does_not_depend_on_how_it_is_divided(make_trainer: Make) -> None:
    settings = {"loss": {"beta_dpo": 1.0, "bco": 1.0}, "beta": 0.5, "max_steps": 3, "cooling_floor": -5.5}
    settings |= {"running_momentum": 0.5, "beta_dpo_scale": 20.0}
    accumulated = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    whole, *others = (
        make_trainer(2, out=str(i), **settings | how)
        for i, how in enumerate(({}, accumulated, {"max_tokens_per_batch": 70}))
    )
    whole.train()
    assert abs(whole.running.margin) > 1e-3
    for parts in others:
        parts.train()
        assert parts.running.margin == pytest.approx(whole.running.margin, abs=1e-5)
        assert parts.running.reward == pytest.approx(whole.running.reward, abs=1e-5)
        torch.testing.assert_close(weights(parts), weights(whole), atol=2e-5, rtol=0)
        for one, other in zip(lines(whole), lines(parts), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_beta_follows_the_mean_margin_of_the_step(make_trainer: Make) -> None:
    """The second step's loss, with M_0 of the first and E[M] of the second, from the log's own numbers."""
    trainer = make_trainer(
        2, loss="beta_dpo", cooling=False, beta=0.5, beta_dpo_scale=30.0, running_momentum=0.5, max_steps=2,
        per_device_train_batch_size=16, gradient_accumulation_steps=1,
    )  # fmt: skip
    seen: list[Any] = []
    ask = trainer.batch_loss

    def batch_loss(model: Any, batch: Any, step: Any) -> Any:
        found = ask(model, batch, step)
        seen.append((found[0].item(), found[1]["rewards/margins"].tolist(), step.margin.item()))
        return found

    trainer.batch_loss = batch_loss
    trainer.train()
    loss, margins, mean = seen[1]
    assert mean == pytest.approx(statistics.fmean(margins), abs=1e-6)
    before = 0.5 * statistics.fmean(seen[0][1])
    beta_up = 1 + 30 * (mean - before)
    assert beta_up > 1.2
    assert loss == pytest.approx(statistics.fmean(softplus(-beta_up * margin) for margin in margins), abs=1e-5)
    assert trainer.running.margin == pytest.approx(before + 0.5 * (mean - before), abs=1e-6)


def test_running_means_survive_a_checkpoint(make_trainer: Make, tmp_path: Path) -> None:
    settings = {"loss": MPO, "beta": 0.5, "running_momentum": 0.5, "save_strategy": "steps", "save_steps": 2}
    settings["lr_scheduler_type"] = "constant"
    whole = make_trainer(2, out="whole", max_steps=4, **settings)
    whole.train()
    make_trainer(2, out="cut", max_steps=2, **settings).train()
    saved = json.loads((tmp_path / "cut" / "checkpoint-2" / "trainer_state.json").read_text())
    kept = saved["stateful_callbacks"]["RunningMeans"]["attributes"]
    resumed = make_trainer(2, out="cut", max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert kept["reward"] != 0
    assert resumed.running.reward == pytest.approx(whole.running.reward, abs=1e-6)
    assert kept["reward"] != resumed.running.reward


def test_ld_dpo_needs_a_reference_of_tokens(make_trainer: Make) -> None:
    class Totals:
        def totals(self, batch: Any) -> torch.Tensor:
            return torch.zeros(len(batch["roles"]))

    trainer = make_trainer(2, loss="ld_dpo", reference="live", cooling=False)
    trainer.reference = Totals()
    with pytest.raises(ConfigError, match="log-probs of tokens"):
        trainer.batch_loss(trainer.model, trainer.collate([trainer.train_dataset[0]]))


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_the_image_term_by_hand(make_trainer: Make, reference: str) -> None:
    """mDPO, on rows of which some have no image: those have the other two terms alone."""
    loss = {"sigmoid": 1.0, "image": 0.5, "anchor": 0.25}
    trainer = make_trainer(2, loss=loss, reference=reference, beta=0.4, cooling=False, max_steps=2)
    trainer.measure_reference()
    batch = trainer.collate([trainer.train_dataset[i] for i in range(8)])
    pictured = [bool(trainer.train_dataset[i][1].images) for i in range(8)]
    assert 0 < sum(pictured) < 8
    log2 = math.log(2)
    start = trainer.batch_loss(trainer.model, batch)[0].item()
    assert start == pytest.approx(1.25 * log2 + 0.5 * log2 * sum(pictured) / 8, abs=1e-5)
    trainer.train()
    found = trainer.batch_loss(trainer.model, batch)[0].item()
    with torch.no_grad():
        now, small = (trainer.engine.logprobs(trainer.model, each).total for each in (batch, batch["cropped"]))
    ratio = (now - trainer.reference.totals(batch)).tolist()
    of_crop = iter((small - trainer.reference.totals(batch["cropped"])).tolist())
    terms = []
    for i, has_image in enumerate(pictured):
        w, l = ratio[2 * i], ratio[2 * i + 1]  # noqa: E741
        image = softplus(-0.4 * (w - next(of_crop))) if has_image else 0.0
        terms.append(softplus(-0.4 * (w - l)) + 0.5 * image + 0.25 * softplus(-0.4 * w))
    assert found == pytest.approx(statistics.fmean(terms), abs=1e-5)
    assert found < start - 0.01


def test_sampled_negatives_leave_the_crops(make_trainer: Make) -> None:
    sampling = {"max_new_tokens": 12, "k": 1, "batch_size": 8, "on_policy_fraction": 1.0}
    trainer = make_trainer(
        2, loss={"sigmoid": 1.0, "image": 1.0}, max_steps=1, on_policy=sampling, sampler=FixedNegatives()
    )
    batches: list[Any] = []
    ask = trainer.batch_loss

    def batch_loss(model: Any, batch: Any, step: Any) -> Any:
        batches.append(batch)
        return ask(model, batch, step)

    trainer.batch_loss = batch_loss
    trainer.train()
    (batch,) = batches
    assert lines(trainer)[0]["negatives/on_policy"] == 1
    pictured = [i for i in batch["row_index"].tolist() if trainer.train_dataset[i][1].images]
    assert batch["cropped"]["row_index"].tolist() == pictured != []


class FixedNegatives:
    """Draws the same answer for every row."""

    def sample(self, rows: Any, *, seed: int) -> list[list[Generated]]:
        return [[Generated("something else entirely", ended=True)] for _ in rows]


def test_the_image_term_needs_whole_batches(make_trainer: Make) -> None:
    with pytest.raises(ConfigError, match="max_tokens_per_batch would tear apart"):
        make_trainer(2, loss={"sigmoid": 1.0, "image": 1.0}, max_tokens_per_batch=100)
