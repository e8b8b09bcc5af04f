"""``activation_checkpointing: auto``: what decides, and that deciding changes nothing else."""

import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cwdpo.data.check import ROUGH
from cwdpo.engine import FeatureCache, make_engine
from cwdpo.trainers import recomputing
from cwdpo.trainers.recomputing import memory_room, step_bytes, trial_fits

Make = Callable[..., Any]
GB = 10**9


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much memory is free."""

    def free(number: int) -> None:
        monkeypatch.setattr(recomputing, "free_memory", lambda: number)

    free(GB)
    return free


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the CPU pass for a card whose memory is asked for, and can be tried."""
    card = SimpleNamespace(
        memory_reserved=lambda device: 300, memory_allocated=lambda device: 100, empty_cache=lambda: None
    )
    monkeypatch.setattr(recomputing, "_MAIN_MEMORY", ())
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)

    def free(number: int) -> None:
        card.mem_get_info = lambda device: (number, 2 * number)

    free(GB)
    return free


def decided(trainer: Any, checkpoint: Path | None = None) -> bool:
    rows = recomputing.StepRows(trainer.collate, trainer.row_lengths, trainer.args.max_tokens_per_batch)
    found = recomputing.decide_recomputing(trainer, rows, None if checkpoint is None else str(checkpoint))
    return found


def test_a_step_beside_the_weights_by_hand() -> None:
    text = SimpleNamespace(hidden_size=8, num_hidden_layers=3, vocab_size=50)
    config = SimpleNamespace(get_text_config=lambda: text)

    class Model(nn.Module):
        dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.trains = nn.Parameter(torch.zeros(10, dtype=torch.float32))
            self.frozen = nn.Parameter(torch.zeros(1000, dtype=torch.float32), requires_grad=False)
            self.config = config

    # 17 values of two bytes a token, layer and hidden unit; logits, log-probs and gradient of the vocabulary
    passing, updating = step_bytes(Model(), 20, bytes_per_value=2)
    assert passing == 3 * 20 * 8 * 17 * 2 + 3 * 20 * 50 * 4
    assert updating == 3 * 10 * 4
    assert step_bytes(Model(), 20)[0] == 3 * 20 * 8 * 17 * 4 + 3 * 20 * 50 * 4


def test_the_room_is_shared_by_the_processes_of_a_machine(
    room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    room(1200)
    assert memory_room(torch.device("cpu")) == 1200
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory_room(torch.device("cpu")) == 400


def test_what_the_allocator_holds_is_free_too(on_a_card: Callable[[int], None]) -> None:
    on_a_card(1000)
    assert memory_room(torch.device("cpu")) == 1200


@pytest.mark.parametrize("stage", [1, 2])
def test_on_a_cpu_the_estimate_decides(
    stage: int, make_trainer: Make, room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(stage, activation_checkpointing="auto")
    rows = trainer.train_dataset
    longest = sorted(range(len(rows)), key=trainer.row_lengths().__getitem__)[-4:]
    costs = trainer.engine.costs(trainer.model, trainer.collate([rows[i] for i in longest]))
    tokens = sum(cost.rows for cost in costs) * max(cost.tokens for cost in costs)
    needed = sum(step_bytes(trainer.model, tokens))
    room(int(needed * ROUGH) + 1)
    with caplog.at_level(logging.INFO, "cwdpo"):
        assert not decided(trainer)
    assert f"activation_checkpointing is off: the longest rows ({tokens:,} tokens) take about" in caplog.text
    room(int(needed * ROUGH) - 1)
    caplog.clear()
    with caplog.at_level(logging.INFO, "cwdpo"):
        assert decided(trainer)
    assert "activation_checkpointing is on: the longest rows" in caplog.text


def test_what_passes_at_one_time_counts(make_trainer: Make, room: Callable[[int], None]) -> None:
    """A budget of tokens divides the batch; crops of images are a second pass whose activations stay."""
    trainer = make_trainer(2, loss={"sigmoid": 1.0, "image": 1.0})
    batch = trainer.collate([trainer.train_dataset[i] for i in range(1, 4)])
    costs = trainer.engine.costs(trainer.model, batch)
    crops = trainer.engine.costs(trainer.model, batch["cropped"])
    passes, tokens = recomputing._largest_passes(trainer.engine, trainer.model, batch, None)
    assert passes == [batch, batch["cropped"]]
    assert tokens == sum(sum(cost.rows for cost in each) * max(cost.tokens for cost in each) for each in (costs, crops))
    largest = max(cost.rows * cost.tokens for cost in costs)
    (one,), tokens = recomputing._largest_passes(trainer.engine, trainer.model, batch, largest)
    assert len(one["prompts"]) == 1
    assert tokens == largest


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("runs_out", [False, True])
def test_a_trial_leaves_no_trace(runs_out: bool, make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(2, lora=True)
    trainer.engine = make_engine("auto", features=FeatureCache(memory_mb=10))
    model, batch = trainer.model, trainer.collate([trainer.train_dataset[1]])
    trainer.engine.logprobs(model, batch)  # checks itself, and keeps the features
    computed = dict(trainer.engine.features.report)
    decoder = model.get_decoder()
    decoder.register_buffer("passes", torch.zeros(1))
    decoder.register_forward_hook(lambda module, *_: module.passes.add_(1) and None)
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    model.eval()
    before, modes = state(model), [module.training for module in model.modules()]
    if runs_out:
        monkeypatch.setattr(torch.Tensor, "backward", out_of_memory)
    assert trial_fits(trainer, [batch, batch], reserved=10) is not runs_out
    assert seen == [True, True]  # with dropout, as in a step
    assert decoder.passes == 0
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())
    assert trainer.engine.features.report == computed


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("no room")


def test_a_trial_has_the_weights_that_train_beside_it(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(2, lora=True)
    batch = trainer.collate([trainer.train_dataset[1]])
    trainer.engine.logprobs(trainer.model, batch)
    empty = torch.empty

    def with_1000_bytes(*size: Any, **more: Any) -> torch.Tensor:
        if size[0] == 1001:
            out_of_memory()
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", with_1000_bytes)
    assert trial_fits(trainer, [batch], reserved=1000)
    assert not trial_fits(trainer, [batch], reserved=1001)


@pytest.mark.parametrize(("fits", "free"), [(True, GB), (False, GB), (None, 0)])
def test_on_a_gpu_a_trial_decides_where_the_estimate_fits(
    fits: bool | None,
    free: int,
    make_trainer: Make,
    on_a_card: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = make_trainer(1)
    on_a_card(free)
    asked = []

    def trial(trainer: Any, passes: Any, *, reserved: int) -> bool:
        asked.append(reserved)
        return bool(fits)

    monkeypatch.setattr(recomputing, "trial_fits", trial)
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with caplog.at_level(logging.INFO, "cwdpo"):
        assert decided(trainer) is not bool(fits)
    said = {True: "and a trial step had room", False: "but a trial step ran out of memory", None: "that are free"}
    assert caplog.messages[-1].endswith(said[fits])
    trained = sum(weight.nbytes for weight in trainer.model.parameters())
    assert asked == ([] if fits is None else [3 * trained + (GB + 200) // 10])
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert np.random.get_state()[1].tolist() == numbers[2]  # type: ignore[index]


def test_no_random_number_is_used_up() -> None:
    def three() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())

    def seed() -> None:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)

    seed()
    with recomputing._same_random_numbers(torch.device("cpu")):
        inside = three()
    assert three() == inside


def test_what_is_divided_among_processes_is_recomputed(
    make_trainer: Make, room: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(1)
    assert not decided(trainer)
    monkeypatch.setattr(recomputing, "divides_gradients", lambda accelerator: True)
    assert decided(trainer)


def test_what_was_decided_holds_where_training_goes_on(
    make_trainer: Make, room: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(1)
    directory = Path(trainer.args.output_dir)
    room(0)
    assert decided(trainer)
    assert json.loads((directory / "activation_checkpointing.json").read_text())["on"] is True
    room(GB)
    with caplog.at_level(logging.INFO, "cwdpo"):
        assert decided(trainer, directory / "checkpoint-1")
    assert caplog.messages[-1] == "activation_checkpointing is on: as it was when training began"
    assert not decided(trainer)  # from the start, nothing holds
    assert not decided(trainer, directory / "checkpoint-1")
    (directory / "activation_checkpointing.json").write_text("{}")
    room(0)
    assert decided(trainer, directory / "checkpoint-1")


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, GB])
def test_a_stage_trains_as_if_the_choice_had_been_written(
    free: int, make_trainer: Make, room: Callable[[int], None]
) -> None:
    room(free)
    own = make_trainer(2, lora=True, max_steps=2, out="auto", activation_checkpointing="auto")
    own.train()
    written = make_trainer(2, lora=True, max_steps=2, out="written", activation_checkpointing=free == 0)
    written.train()
    assert own.args.activation_checkpointing is (free == 0)
    assert own.model.is_activation_checkpointing is (free == 0)
    torch.testing.assert_close(state(own.model), state(written.model), rtol=0, atol=0)


@pytest.mark.slow
def test_a_resumed_stage_equals_an_uninterrupted_one(make_trainer: Make, room: Callable[[int], None]) -> None:
    settings = {"lora": True, "max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    settings["activation_checkpointing"] = "auto"
    room(0)
    whole = make_trainer(1, out="whole", **settings)
    whole.train()
    make_trainer(1, out="cut", **settings).train()
    shutil.rmtree(Path(whole.args.output_dir).parent / "cut" / "checkpoint-3")
    room(GB)
    resumed = make_trainer(1, out="cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.args.activation_checkpointing is True
    torch.testing.assert_close(state(resumed.model), state(whole.model), rtol=0, atol=0)
