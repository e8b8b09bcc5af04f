"""Stage 2: what a batch costs, what the reference is, and what must not matter."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cwdpo.data.rows import Row
from cwdpo.errors import DataError, UserError
from cwdpo.models.adapters import add_lora, load_adapter
from cwdpo.models.loading import load_policy
from cwdpo.reference import StartingAdapter

Make = Callable[..., Any]


def lines(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_same_weights(first: Any, second: Any, tolerance: float) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("lora", [False, True])
def test_every_reward_is_zero_at_step_zero(make_trainer: Make, lora: bool, reference: str) -> None:
    trainer = make_trainer(2, "qwen2_5_vl", lora=lora, reference=reference)
    metrics = trainer.evaluate(trainer.train_dataset)
    assert metrics["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    for name in ("chosen", "rejected", "margins"):
        assert metrics[f"eval_rewards/{name}"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_cached_and_live_reference_train_alike(make_trainer: Make, lora: bool) -> None:
    runs = [make_trainer(2, lora=lora, out=r, reference=r, max_steps=4) for r in ("cached", "live")]
    for trainer in runs:
        trainer.train()
    for cached, live in zip(lines(runs[0]), lines(runs[1]), strict=True):
        assert cached["loss"] == pytest.approx(live["loss"], abs=2e-6)
        assert cached["rewards/margins"] == pytest.approx(live["rewards/margins"], abs=1e-5)
    assert lines(runs[0])[-1]["rewards/margins"] > 0.01  # it moved, so equality means something
    assert_same_weights(*runs, tolerance=1e-5)


@pytest.mark.slow
def test_stage_two_on_a_trained_adapter_starts_at_zero_and_keeps_its_reference(make_trainer: Make, tiny: Any) -> None:
    """The live reference of a trained adapter is that adapter, not the base without it."""
    first = make_trainer(1, lora=True, out="stage1", max_steps=4, learning_rate=1e-2)
    first.train()
    first.save_model()

    def second(reference: str) -> Any:
        model = load_adapter(load_policy(tiny("llava"), dtype="float32"), first.args.output_dir)
        return make_trainer(2, model=model, out=reference, reference=reference, max_steps=4)

    live, cached = second("live"), second("cached")
    assert live.evaluate(live.train_dataset)["eval_rewards/chosen"] == pytest.approx(0, abs=1e-5)
    for trainer in (live, cached):
        trainer.train()
    assert_same_weights(live, cached, tolerance=1e-5)
    assert lines(live)[-1]["rewards/margins"] > 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("target", "frozen"), [("language", "lora_B"), (["embed_tokens"], "")])
def test_the_live_reference_is_where_stage_two_began_whatever_trains(
    target: Any, frozen: str, make_trainer: Make, tiny: Any
) -> None:
    """Adapters that are not zero, of which some parts are frozen, or which have parts of other names."""
    model = add_lora(load_policy(tiny("llava"), dtype="float32"), r=4, alpha=8, target_modules=target)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
            weight.requires_grad_(not frozen or frozen not in name)
    trainer = make_trainer(2, model=model, reference="live", max_steps=3, learning_rate=1e-2)
    trainer.train()
    assert lines(trainer)[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert abs(lines(trainer)[-1]["rewards/margins"]) > 1e-3


@torch.no_grad()
def test_a_reference_leaves_no_cast_of_its_weights_to_the_policy(make_trainer: Make, tiny: Any) -> None:
    """Autocast remembers what it has cast by the parameter, though the weights in it are exchanged."""
    model = add_lora(load_policy(tiny("llava"), dtype="float32"), r=4, alpha=8, dropout=0.1).eval()  # PEFT's layers
    trainer = make_trainer(2, model=model)
    start = StartingAdapter(model, trainer.engine)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    batch = trainer.collate([trainer.train_dataset[i] for i in range(2)])
    with torch.autocast("cpu", torch.bfloat16):
        alone = trainer.engine.logprobs(model, batch).total
    with torch.autocast("cpu", torch.bfloat16):
        before = start.totals(batch)
        after = trainer.engine.logprobs(model, batch).total
        again = start.totals(batch)
    assert torch.equal(after, alone)
    assert torch.equal(again, before)
    assert not torch.equal(before, alone)


@pytest.mark.slow
def test_one_batch_of_four_trains_like_two_accumulated_batches_of_two(make_trainer: Make) -> None:
    whole = make_trainer(2, out="whole", max_steps=3, cooling_floor=-5.5)
    split = make_trainer(
        2, out="split", max_steps=3, cooling_floor=-5.5, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    whole.train()
    split.train()
    assert_same_weights(whole, split, tolerance=1e-5)
    for one, other in zip(lines(whole), lines(split), strict=True):
        for name in ("loss", "rewards/margins", "cooling/p50", "entropy", "num_tokens", "logps_mean/rejected"):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name
    start = load_policy(whole.model.config.name_or_path, dtype="float32").state_dict()
    moved = max((p - start[n]).abs().max().item() for n, p in weights(whole).items() if n in start)
    assert moved > 1e-3


def by_hand(trainer: Any, batch: Any, beta: float, weight: Callable[[float], float]) -> float:
    """The loss in Python floats, from the engine's log-probs (which have tests of their own)."""
    with torch.no_grad():
        logprobs = trainer.engine.logprobs(trainer.model, batch)
    start = trainer.reference.totals(batch).tolist()
    total, mean = logprobs.total.tolist(), logprobs.mean.tolist()
    prompts: dict[int, dict[int, list[int]]] = {}
    for answer, (prompt, role) in enumerate(zip(batch["prompt_index"].tolist(), batch["roles"].tolist(), strict=True)):
        prompts.setdefault(prompt, {0: [], 1: []})[role].append(answer)
    losses = []
    for roles in prompts.values():
        (w,) = roles[0]
        pairs = []
        for r in roles[1]:
            z = beta * ((total[w] - start[w]) - weight(mean[r]) * (total[r] - start[r]))
            pairs.append(math.log1p(math.exp(-z)))
        losses.append(statistics.fmean(pairs))
    return statistics.fmean(losses)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        ({"cooling_floor": -5.7, "cooling_temperature": 0.4}, lambda mean: sigmoid((mean + 5.7) / 0.4)),
        ({"cooling": False}, lambda mean: 1.0),
        ({"cooling_constant": 0.2}, lambda mean: 0.2),
    ],
)
def test_the_loss_of_a_batch_by_hand(make_trainer: Make, rows: list[Row], settings: Any, weight: Any) -> None:
    """After a few steps, with one, two and three negatives a prompt: each prompt counts once."""
    several = [replace(row, rejected=(row.rejected * 3)[: 1 + i % 3]) for i, row in enumerate(rows)]
    several = [replace(r, rejected=tuple(f"{text} {n}" for n, text in enumerate(r.rejected))) for r in several]
    trainer = make_trainer(2, train_rows=several, max_steps=3, beta=0.3, **settings)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    loss, seen = trainer.batch_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(by_hand(trainer, batch, 0.3, weight), abs=2e-6)
    assert loss.item() < math.log(2) - 0.01
    assert len(seen["rewards/rejected"]) == 12
    assert len(seen["rewards/chosen"]) == 6


@pytest.mark.slow
def test_row_order_and_batch_split_do_not_change_losses(make_trainer: Make) -> None:
    trainer = make_trainer(2, "qwen2_vl", max_steps=2)
    trainer.train()
    items = [trainer.train_dataset[i] for i in range(8)]

    def loss(some: list[Any]) -> float:
        return trainer.batch_loss(trainer.model, trainer.data_collator(some))[0].item()

    whole = loss(items)
    assert loss(items[::-1]) == pytest.approx(whole, abs=1e-6)
    assert statistics.fmean([loss(items[:4]), loss(items[4:])]) == pytest.approx(whole, abs=1e-6)
    assert statistics.fmean([loss([item]) for item in items]) == pytest.approx(whole, abs=1e-6)


@pytest.mark.slow
def test_detached_weight_has_no_gradient_and_flowing_weight_has(make_trainer: Make) -> None:
    """Flowing, dL/dlbar gains beta * sigmoid(-z) * Delta_l * w (1 - w) / tau; detached, the weight is a constant."""

    def gradient(shift: float, **cooling: Any) -> tuple[torch.Tensor, float]:
        trainer = make_trainer(2, out=f"{cooling}{shift}", **cooling)
        trainer.measure_reference()
        trainer.reference._entries = {k: (t - shift, n) for k, (t, n) in trainer.reference._entries.items()}
        loss, seen = trainer.batch_loss(trainer.model, trainer.data_collator([trainer.train_dataset[1]]))
        loss.backward()
        flat = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        return flat, seen["cooling"].item()

    detached, weight = gradient(3.0, cooling_floor=-5.8, cooling_detach=True)
    constant, _ = gradient(3.0, cooling_constant=weight)
    flowing, _ = gradient(3.0, cooling_floor=-5.8, cooling_detach=False)
    torch.testing.assert_close(detached, constant, atol=1e-6, rtol=1e-4)
    assert (detached - flowing).norm() / detached.norm() > 0.01
    still, _ = gradient(0.0, cooling_floor=-5.8, cooling_detach=False)  # Delta_l = 0: nothing flows
    torch.testing.assert_close(still, gradient(0.0, cooling_floor=-5.8, cooling_detach=True)[0], atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_a_whole_pair_can_be_scaled_or_dropped(make_trainer: Make) -> None:
    """With one weight for all, the scaled loss is that multiple of DPO's; of a pair under the limit nothing is left."""

    def loss(**cooling: Any) -> tuple[float, float]:
        trainer = make_trainer(2, out=f"{cooling}", **cooling)
        trainer.measure_reference()
        trainer.reference._entries = {k: (t - 3.0 * n, n) for k, (t, n) in trainer.reference._entries.items()}
        found, seen = trainer.batch_loss(trainer.model, trainer.data_collator([trainer.train_dataset[1]]))
        return found.item(), seen["cooling"].item()

    plain, _ = loss(cooling=False)
    cooled, logged = loss(cooling_constant=0.3)
    scaled, logged_too = loss(cooling_constant=0.3, cooling_scales="pair")
    assert scaled == pytest.approx(0.3 * plain, rel=1e-6)
    assert cooled != pytest.approx(scaled, rel=0.01)
    assert logged == logged_too == pytest.approx(0.3)
    assert loss(cooling_constant=0.3, cooling_drop_below=0.31)[0] == 0.0
    assert loss(cooling_constant=0.3, cooling_drop_below=0.29)[0] == cooled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "role", "lower"),
    [({}, "chosen", 0.6), ({"cooling_floor": "gentle", "cooling_temperature": 1.0}, "gentle", 0.0)],
)
def test_floor_is_measured_at_the_start_and_frozen(
    make_trainer: Make, settings: dict[str, Any], role: str, lower: float
) -> None:
    trainer = make_trainer(2, max_steps=4, **settings)
    trainer.measure_reference()
    with torch.no_grad():
        rows = [row for _, row in (trainer.train_dataset[i] for i in range(16))]
        means = [-statistics.fmean(_token_nlls(trainer, row, getattr(row, role))) for row in rows]
    measured = trainer.floor
    assert measured == pytest.approx(statistics.fmean(means) - lower, abs=1e-5)
    trainer.train()
    assert trainer.floor == measured


@pytest.mark.slow
@pytest.mark.parametrize(
    ("floor", "said"),
    [
        (
            "chosen - 200 tau",
            "no rejected answer is too easy (weight at least 1), so this is DPO without cooling. Set `",
        ),
        (-0.1, "so stage 2 works like SFT. Set `stage2.cooling.floor` (`cooling_floor` in Python) between "),
        ("chosen - 2 tau", None),
    ],
)
def test_a_floor_that_cools_nothing_is_said(
    make_trainer: Make, caplog: pytest.LogCaptureFixture, floor: float | str, said: str | None
) -> None:
    make_trainer(2, max_steps=1, cooling_floor=floor).measure_reference()
    warned = [record.getMessage() for record in caplog.records if "cooling floor" in record.getMessage()]
    assert len(warned) == (said is not None)
    assert said is None or said in warned[0]


def _token_nlls(trainer: Any, row: Row, answer: str) -> list[float]:
    """Token NLLs of an answer by the model's own full logits."""
    encoded = trainer.encoder.encode(row, [answer])
    ids, prompt = encoded.answers[0], dict(encoded.prompt)
    joined = torch.cat([prompt.pop("input_ids"), torch.tensor([ids])], dim=1)
    prompt.pop("attention_mask")
    images = {k: v for k, v in prompt.items() if k == "pixel_values"}
    logprobs = trainer.model(input_ids=joined, **images).logits[0, -len(ids) - 1 : -1].log_softmax(-1)
    return [-logprobs[i, token].item() for i, token in enumerate(ids)]


def test_a_row_without_rejected_is_named(make_trainer: Make, rows: list[Row]) -> None:
    bad = [*rows[:3], replace(rows[3], rejected=(), source="train.jsonl:4")]
    with pytest.raises(DataError, match=r"train\.jsonl:4.*rejected"):
        make_trainer(2, train_rows=bad, max_steps=1, dataloader_num_workers=0).train()


def test_another_models_reference_cache_is_refused(make_trainer: Make, tiny: Any) -> None:
    make_trainer(2, out="shared").measure_reference()
    other = load_policy(tiny("llava"), dtype="float32", freeze_vision=False)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match="another model"):
        make_trainer(2, model=other, out="shared").measure_reference()


def test_a_reference_of_another_precision_is_refused(make_trainer: Make) -> None:
    make_trainer(2, out="shared").measure_reference()
    with pytest.raises(ValueError, match="computed in no mixed precision on cpu, and this run computes in bf16"):
        make_trainer(2, out="shared", bf16=True).measure_reference()


def test_a_reference_that_is_not_a_number_is_refused(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(2)
    ask = trainer.engine.logprobs

    def spoiled(model: Any, batch: Any, **want: Any) -> Any:
        found = ask(model, batch, **want)
        of_row = torch.from_numpy(batch["row_index"][batch["prompt_index"]])
        return replace(found, token=torch.where((of_row == 3)[:, None], math.nan, found.token))

    monkeypatch.setattr(trainer.engine, "logprobs", spoiled)
    with pytest.raises(UserError, match="row 3 a log-prob of nan"):
        trainer.measure_reference()
