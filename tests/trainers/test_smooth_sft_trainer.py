"""Stage 1: what a batch costs under each objective, and accumulation."""

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError

Make = Callable[..., Any]


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        ("plain", {}),
        ("smoothed", {"epsilon": 0.2}),
        ("constrained", {"ceiling": 50.0}),
        ("constrained", {"ceiling": 0.01}),
    ],
)
def test_accumulated_batches_train_like_one(make_trainer: Make, objective: str, settings: dict[str, float]) -> None:
    """The hinge adds up while it is open for every micro-batch, or shut for every one (ceiling far off)."""
    common = {"objective": objective, "penalty": 0.3, "max_steps": 3, **settings}
    whole = make_trainer(1, out="whole", **common)
    split = make_trainer(1, out="split", per_device_train_batch_size=2, gradient_accumulation_steps=2, **common)
    start = parameters(whole)
    whole.train()
    split.train()
    torch.testing.assert_close(parameters(whole), parameters(split), atol=1e-5, rtol=0)
    assert losses(whole) == pytest.approx(losses(split), abs=1e-5)
    assert (parameters(whole) - start).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "settings"),
    [("plain", {}), ("smoothed", {"epsilon": 0.2}), ("constrained", {"ceiling": 50.0})],
)
def test_row_order_and_batch_split_do_not_change_losses(
    make_trainer: Make, objective: str, settings: dict[str, float]
) -> None:
    """For halves that hold as many gentle negatives each, and a hinge that is open in both."""
    trainer = make_trainer(1, "qwen2_vl", objective=objective, penalty=0.3, **settings)
    items = [trainer.train_dataset[i] for i in range(8)]

    def loss(some: list[Any]) -> float:
        found: float = trainer.batch_loss(trainer.model, trainer.data_collator(some))[0].item()
        return found

    whole = loss(items)
    assert loss(items[::-1]) == pytest.approx(whole, rel=2e-6)
    assert loss([*items[3:], *items[:3]]) == pytest.approx(whole, rel=2e-6)
    assert statistics.fmean([loss(items[:4]), loss(items[4:])]) == pytest.approx(whole, rel=2e-6)
    assert statistics.fmean([loss([item]) for item in items]) == pytest.approx(whole, rel=2e-6)


def logprobs(trainer: Any, batch: Any, role: int) -> tuple[list[float], list[list[float]]]:
    """lbar of the answers of a role, and their log-probs by token with the vocabulary's mean."""
    with torch.no_grad():
        read = trainer.engine.logprobs(trainer.model, batch, want=["uniform"])
    picked = [i for i, r in enumerate(batch["roles"].tolist()) if r == role]
    tokens = [
        [
            (t, u)
            for t, u, m in zip(read.token[i].tolist(), read.uniform[i].tolist(), read.mask[i].tolist(), strict=True)
            if m
        ]
        for i in picked
    ]
    return [statistics.fmean(t for t, _ in answer) for answer in tokens], tokens


@pytest.mark.parametrize(("ceiling", "is_open"), [(50.0, True), (0.5, False)])
def test_constrained_loss_of_a_batch_by_hand(
    make_trainer: Make, rows: list[Row], ceiling: float, is_open: bool
) -> None:
    some = [row if i % 2 else replace(row, gentle=None) for i, row in enumerate(rows)]
    trainer = make_trainer(1, train_rows=some, objective="constrained", penalty=0.3, ceiling=ceiling)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    chosen, gentle = logprobs(trainer, batch, 0)[0], logprobs(trainer, batch, 2)[0]
    assert (len(chosen), len(gentle)) == (6, 3)
    hinge = max(0.0, ceiling + statistics.fmean(gentle))
    assert (hinge > 0) == is_open
    loss, seen = trainer.batch_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(-statistics.fmean(chosen) + 0.3 * hinge, abs=1e-5)
    assert seen["logps_mean/gentle"].tolist() == pytest.approx(gentle, abs=1e-5)


def test_smoothed_loss_of_a_batch_by_hand(make_trainer: Make) -> None:
    trainer = make_trainer(1, objective="smoothed", penalty=0.3, epsilon=0.2)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    chosen = logprobs(trainer, batch, 0)[0]
    smoothed = [
        -statistics.fmean(0.8 * token + 0.2 * uniform for token, uniform in answer)
        for answer in logprobs(trainer, batch, 2)[1]
    ]
    loss, _ = trainer.batch_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(-statistics.fmean(chosen) + 0.3 * statistics.fmean(smoothed), abs=1e-5)


def test_negatives_on_other_ranks_decide_about_the_hinge_too(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the mean NLL is below C, and the hinge open; with another rank's NLLs of 1,000 it is above, and shut."""
    trainer = make_trainer(1, objective="constrained", penalty=0.3, ceiling=50.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    alone = trainer.batch_loss(trainer.model, batch)[0].item()
    others = torch.tensor([4000.0, 4.0])  # sum and count
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda parts, reduction: parts + others)
    together = trainer.batch_loss(trainer.model, batch)[0].item()
    assert together == pytest.approx(-statistics.fmean(logprobs(trainer, batch, 0)[0]), abs=1e-5)
    assert alone > together + 10


@pytest.mark.slow
def test_evaluation_has_the_hinge_of_its_own_batch(make_trainer: Make, rows: list[Row]) -> None:
    """Also after a training batch that was divided, whose gentle negatives are on the other side of the ceiling."""
    longer = [replace(row, gentle=f"{row.gentle} {i}" * (1 + i)) for i, row in enumerate(rows[:6])]
    trainer = make_trainer(1, penalty=0.5, max_steps=1, max_tokens_per_batch=200, eval_rows=longer)
    trainer.train()
    trained = next(-line["logps_mean/gentle"] for line in trainer.state.log_history if "loss" in line)
    chosen, gentle = (logprobs(trainer, trainer.data_collator(list(trainer.eval_dataset)), role)[0] for role in (0, 2))
    nll = -statistics.fmean(gentle)
    assert abs(nll - trained) > 0.01
    for ceiling in ((nll + trained) / 2, nll + 1, nll - 1):
        trainer.args.ceiling = ceiling
        by_hand = -statistics.fmean(chosen) + 0.5 * max(0.0, ceiling - nll)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(by_hand, abs=1e-5)


def test_plain_objective_does_not_even_encode_gentle_negatives(make_trainer: Make) -> None:
    trainer = make_trainer(1, objective="plain")
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    assert batch["roles"].tolist() == [0, 0, 0, 0]


def test_batches_without_any_gentle_negative_train(make_trainer: Make, rows: list[Row]) -> None:
    bare = [replace(row, gentle=None) for row in rows]
    with pytest.raises(ConfigError, match=r"no row has a `gentle` negative .* or write objective='plain'"):
        make_trainer(1, train_rows=bare)
    make_trainer(1, train_rows=bare, objective="plain")
    trainer = make_trainer(1, train_rows=[*bare, rows[0]], objective="constrained", penalty=5.0, ceiling=50.0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    loss, _ = trainer.batch_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(-statistics.fmean(logprobs(trainer, batch, 0)[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "objective: smoothed"),
        ({"remove_unused_columns": True}, "read from the row"),
        ({"use_liger_kernel": True}, "fused_linear_cross_entropy: false"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"rope": True}}, "fused_linear_cross_entropy: false"),
    ],
)
def test_settings_without_effect_are_refused(make_trainer: Make, setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(1, **setting)
