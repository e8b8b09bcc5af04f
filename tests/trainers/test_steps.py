"""A step's loss and what it does to the weights do not feel how its rows were divided."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.trainers import CWDPOConfig
from cwdpo.trainers.steps import row_tokens

Make = Callable[..., Any]
STEPS: dict[str, Any] = {"max_steps": 2, "learning_rate": 1e-2, "optim": "sgd", "max_grad_norm": 0.0}
OBJECTIVES: list[tuple[int, dict[str, Any]]] = [
    (1, {"objective": "constrained", "penalty": 0.5, "ceiling": 50.0}),
    (1, {"objective": "constrained", "penalty": 0.5}),  # the ceiling is set where it divides the parts
    (1, {"objective": "smoothed", "penalty": 0.5}),
    (2, {"cooling_floor": -5.5}),
]


@pytest.fixture
def uneven(rows: list[Row]) -> list[Row]:
    """Answers of very different lengths; some rows have no gentle negative, others several negatives."""
    found = []
    for i, row in enumerate(rows):
        extra = " and so on" * (i % 4 * 3)
        more = (f"Something else, number {i}.",) if i % 5 == 0 else ()
        found.append(
            replace(
                row,
                chosen=row.chosen + extra,
                rejected=row.rejected + more,
                gentle=None if i % 3 == 0 else f"{row.gentle}{extra}",
            )
        )
    return found


def lines(trainer: Any) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


def assert_trained_alike(one: Any, other: Any) -> None:
    names = {"loss", "num_tokens", "entropy", "logps_mean/chosen", "rewards/margins", "cooling/p50", "grad_norm"}
    for first, second in zip(lines(one), lines(other), strict=True):
        for name in names & first.keys():
            assert first[name] == pytest.approx(second[name], abs=1e-5, rel=1e-4), name
    moved = 0.0
    fresh = type(one.model).from_pretrained(one.model.config.name_or_path).state_dict()
    weights = dict(other.model.named_parameters())
    for name, value in one.model.named_parameters():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-4)
        moved = max(moved, (value - fresh[name]).abs().max().item() if name in fresh else 0.0)
    assert moved > 1e-3


def between_the_parts(trainer: Any) -> float:
    """A ceiling that the mean NLL of all gentle negatives is below, and that of some rows is not."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    with torch.no_grad():
        nll = -trainer.engine.logprobs(trainer.model, batch).mean[batch["roles"] == 2]
    return float(nll.mean()) + 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "settings"), OBJECTIVES)
def test_a_token_budget_changes_nothing_but_memory(
    stage: int, settings: dict[str, Any], make_trainer: Make, uneven: list[Row]
) -> None:
    common = {**STEPS, **settings, "train_rows": uneven, "per_device_train_batch_size": 16}
    if stage == 1 and settings["objective"] == "constrained" and "ceiling" not in settings:
        common["ceiling"] = between_the_parts(make_trainer(1, "qwen2_5_vl", **common))
    whole = make_trainer(stage, "qwen2_5_vl", out="whole", **common)
    divided = make_trainer(stage, "qwen2_5_vl", out="divided", max_tokens_per_batch=250, **common)
    if stage == 2:
        divided.measure_reference()  # the reference pass has a batch size of its own
    passes: list[int] = []
    divided.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    whole.train()
    divided.train()
    assert max(passes) <= 250
    assert len(passes) > 8
    assert_trained_alike(whole, divided)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "settings"), [OBJECTIVES[0], *OBJECTIVES[2:]])
def test_accumulated_parts_of_unequal_size_count_by_their_rows(
    stage: int, settings: dict[str, Any], make_trainer: Make, uneven: list[Row]
) -> None:
    """Eight rows as 3 + 3 + 2, with unequal numbers of gentle negatives; the hinge is open throughout."""
    common = {**STEPS, **settings, "train_rows": uneven[:8]}
    whole = make_trainer(stage, out="whole", per_device_train_batch_size=8, **common)
    split = make_trainer(stage, out="split", per_device_train_batch_size=3, gradient_accumulation_steps=3, **common)
    whole.train()
    split.train()
    assert_trained_alike(whole, split)


def test_a_row_beyond_the_budget_runs_alone_and_is_named(make_trainer: Make, uneven: list[Row], caplog: Any) -> None:
    trainer = make_trainer(2, train_rows=uneven, max_tokens_per_batch=10, cooling_floor=-5.5, **STEPS)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in (3, 7)])
    assert [part["row_index"].tolist() for part in trainer._parts(trainer.model, batch)] in ([[3], [7]], [[7], [3]])
    assert caplog.text.count("run alone") == 1
    assert str(max(row_tokens(batch))) in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tree", "plain"])
def test_every_pass_keeps_to_the_budget_as_its_engine_lays_rows_out(
    engine: str, make_trainer: Make, uneven: list[Row]
) -> None:
    budget = 500
    trainer = make_trainer(
        2,
        train_rows=uneven,
        eval_rows=uneven[:8],
        engine=engine,
        max_tokens_per_batch=budget,
        cooling_floor=-5.5,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=2,
        **STEPS,
    )
    passes: list[tuple[bool, int, int]] = []  # training or not, rows, tokens
    trainer.model.get_decoder().layers[0].register_forward_hook(
        lambda module, args, output: passes.append((torch.is_grad_enabled(), len(args[0]), args[0].shape[:2].numel()))
    )
    trainer.train()
    assert {training for training, _, _ in passes} == {True, False}  # the reference pass and evaluation, too
    alone = 1 if engine == "tree" else 4  # rows of one prompt, which cannot be divided
    assert any(rows > alone for _, rows, _ in passes)
    assert all(tokens <= budget for _, rows, tokens in passes if rows > alone)
    assert any(tokens > budget / 2 for _, _, tokens in passes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_buckets_resume_exactly(workers: int, make_trainer: Make, uneven: list[Row]) -> None:
    settings = {
        "train_rows": uneven,
        "length_buckets": True,
        "max_tokens_per_batch": 200,
        "cooling_floor": -5.5,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "dataloader_num_workers": workers,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3,
    }
    straight = make_trainer(2, out="run", **settings)
    straight.train()
    resumed = make_trainer(2, out="run", **settings)
    resumed.train(resume_from_checkpoint=f"{straight.args.output_dir}/checkpoint-4")  # in the second epoch
    weights = dict(resumed.model.named_parameters())
    for name, value in straight.model.named_parameters():
        assert torch.equal(value, weights[name]), name


def test_buckets_get_the_epoch_they_resume_in(make_trainer: Make, uneven: list[Row]) -> None:
    """Accelerate reaches a sampler under a skipped, sharded batch sampler only with our help."""
    trainer = make_trainer(2, train_rows=uneven, length_buckets=True)
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    first = list(sampler)
    trainer.state.epoch = 1.5
    trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    resumed = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == resumed != first


@pytest.mark.slow
def test_training_again_adds_no_callback(make_trainer: Make, uneven: list[Row]) -> None:
    trainer = make_trainer(1, train_rows=uneven, length_buckets=True, max_steps=1)
    before = list(trainer.callback_handler.callbacks)
    trainer.train()
    trainer.train()
    assert trainer.callback_handler.callbacks == before
    assert [callback for callback in before if callback in trainer.own_callbacks()] == trainer.own_callbacks()


def test_buckets_use_the_counts_of_the_reference_pass(make_trainer: Make, uneven: list[Row]) -> None:
    trainer = make_trainer(2, train_rows=uneven, length_buckets=True)
    trainer.measure_reference()
    counted = [row_tokens(trainer.collate([trainer.train_dataset[i]]))[0] for i in range(16)]
    assert trainer.row_lengths() == counted
    assert len(set(counted)) > 4


def test_estimates_without_a_reference_pass(make_trainer: Make, uneven: list[Row]) -> None:
    trainer = make_trainer(1, train_rows=uneven, length_buckets=True)
    counted = [row_tokens(trainer.collate([trainer.train_dataset[i]]))[0] for i in range(16)]
    for estimate, exact in zip(trainer.row_lengths(), counted, strict=True):
        assert estimate == pytest.approx(exact, rel=0.25)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "length_buckets: true"),
        ({"train_sampling_strategy": "batch_rebalance"}, "length_buckets: true"),
        ({"max_tokens_per_batch": 0}, "leave it out"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], advice: str, tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=advice):
        CWDPOConfig(output_dir=str(tmp_path), use_cpu=True, **settings)
