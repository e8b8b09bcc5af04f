"""A step that is not finite stops training before the update, or is skipped and counted."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import disc_data
from torch import Tensor, nn
from transformers import TrainerCallback

from cwdpo.config import checking
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, UserError
from cwdpo.trainers.finite import FiniteSteps, broken_weights

Make = Callable[..., Any]
STEPS: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


class Poison(TrainerCallback):
    """Makes one value of the gradient of some steps not finite, counted from 1."""

    def __init__(self, *steps: int, value: float = math.nan) -> None:
        self.steps, self.value = steps, value

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        weight = next(weight for weight in model.parameters() if weight.requires_grad)

        def spoil(gradient: Tensor) -> Tensor:
            if state.global_step + 1 in self.steps:
                gradient = gradient.clone()
                gradient.view(-1)[0] = self.value
            return gradient

        self.handle = weight.register_hook(spoil)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.handle.remove()


class LatePoison(TrainerCallback):
    """Spoils the gradient after it was clipped."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **kwargs: Any) -> None:
        if state.global_step + 1 == 3:
            next(w for w in model.parameters() if w.grad is not None).grad.view(-1)[0] = math.nan  # type: ignore[union-attr]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("poison", "settings"),
    [
        (Poison(3), {}),
        (Poison(3, value=math.inf), {}),
        (LatePoison(), {"max_grad_norm": 0}),
        (Poison(3), {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_tokens_per_batch": 100}),
    ],
)
def test_a_gradient_that_is_not_finite_stops_the_step(
    make_trainer: Make, tmp_path: Path, poison: TrainerCallback, settings: dict[str, Any]
) -> None:
    trainer = make_trainer(2, lora=True, callbacks=[poison], **STEPS | settings)
    with pytest.raises(
        UserError, match=r"^step 3: the norm of the gradient is not a finite number\. Its rows: "
    ) as raised:
        trainer.train()
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]
    assert trainer.state.global_step == 2
    assert not broken_weights(trainer.model)
    named = re.findall(r"train\.jsonl:\d+ \(id \d+\)", str(raised.value))
    assert len(set(named)) == 4  # the rows of the step, of all its micro-batches


@pytest.mark.slow
def test_callbacks_that_come_later_are_looked_at_too(make_trainer: Make) -> None:
    trainer = make_trainer(2, lora=True, max_grad_norm=0, max_steps=3)
    trainer.add_callback(LatePoison())
    with pytest.raises(UserError, match=r"^step 3: the norm of the gradient is not a finite number"):
        trainer.train()
    assert not broken_weights(trainer.model)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_own_micro_batch(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(1, **STEPS, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    compute, seen = trainer.batch_loss, []

    def spoiled(model: nn.Module, batch: Any, **kwargs: Any) -> Any:
        loss, values = compute(model, batch, **kwargs)
        seen.append(batch["row_index"].tolist())
        return loss * (math.nan if len(seen) == 5 else 1.0), values

    trainer.batch_loss = spoiled
    with pytest.raises(UserError, match=r"^step 3: the loss is not a finite number") as raised:
        trainer.train()
    assert checkpoints(tmp_path / "out") == ["checkpoint-2"]
    named = {int(line) - 1 for line in re.findall(r"train\.jsonl:(\d+)", str(raised.value))}
    assert named == set(seen[4])


@pytest.mark.slow
def test_a_skipped_step_changes_nothing_and_is_counted(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(2, lora=True, callbacks=[Poison(3, 4)], on_nonfinite="skip", **STEPS | {"save_steps": 1})
    trainer.train()
    weights = [torch.load(tmp_path / "out" / f"checkpoint-{step}" / "optimizer.pt") for step in (5, 6)]
    assert {int(s["step"]) for s in weights[1]["state"].values()} == {4}
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert [math.isfinite(line["loss"]) for line in lines] == [True, True, False, False, True, True]
    assert ["rewards/margins" in line for line in lines] == [True, True, False, False, True, True]


@pytest.mark.slow
def test_the_mean_of_a_log_line_is_that_of_the_steps_that_count(make_trainer: Make) -> None:
    each = make_trainer(2, lora=True, on_nonfinite="skip", callbacks=[Poison(2)], max_steps=3)
    each.train()
    losses = [line["loss"] for line in each.state.log_history if "loss" in line]
    together = make_trainer(2, lora=True, on_nonfinite="skip", callbacks=[Poison(2)], max_steps=3, logging_steps=3)
    together.train()
    (line,) = [line for line in together.state.log_history if "loss" in line]
    assert line["loss"] == pytest.approx((losses[0] + losses[2]) / 2, abs=1e-7)


@pytest.mark.slow
def test_skipping_goes_on_where_it_was(make_trainer: Make, tmp_path: Path) -> None:
    settings = STEPS | {"on_nonfinite": "skip", "save_steps": 3}
    whole = make_trainer(2, lora=True, callbacks=[Poison(3, 5)], **settings)
    whole.train()
    resumed = make_trainer(2, lora=True, callbacks=[Poison(3, 5)], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert resumed.finite.skipped == whole.finite.skipped == 2
    for first, second in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
def test_broken_weights_stop_even_where_steps_are_skipped(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_MUST_BE", {})  # any learning rate
    trainer = make_trainer(2, **STEPS | {"save_steps": 1}, on_nonfinite="skip", learning_rate=1e38)
    with pytest.raises(UserError, match=r"weights"):
        trainer.train()
    assert checkpoints(tmp_path / "out") in ([], ["checkpoint-1"])


def test_a_checkpoint_of_broken_weights_is_not_begun(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(2, lora=True)
    with torch.no_grad():
        next(w for w in trainer.model.parameters() if w.requires_grad).view(-1)[0] = math.inf
    with pytest.raises(UserError, match="1 of its trained weights"):
        trainer.save_model(str(tmp_path / "out" / "checkpoint-3"), _internal_call=True)
    assert not (tmp_path / "out" / "checkpoint-3").exists()


class Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


@pytest.mark.parametrize(("scale", "stops"), [(65536.0, False), (1.0, True)])
def test_loss_scaling_meets_its_own_overflows(make_trainer: Make, scale: float, stops: bool) -> None:
    trainer = make_trainer(1)
    trainer.accelerator.scaler = Scaler(scale)
    weight = next(w for w in trainer.model.parameters() if w.requires_grad)
    weight.grad = torch.full_like(weight, math.inf)
    trainer.finite.counted(torch.tensor(1.0), {"row_index": torch.tensor([0])})
    step = lambda: trainer.finite.on_pre_optimizer_step(None, trainer.state, None, model=trainer.model)  # noqa: E731
    if stops:
        with pytest.raises(UserError, match="the norm of the gradient"):
            step()
    else:
        step()


def test_the_setting_is_checked(make_trainer: Make) -> None:
    with pytest.raises(ConfigError, match="on_nonfinite is 'ignore', but must be one of stop, skip"):
        make_trainer(1, on_nonfinite="ignore")


def test_many_rows_are_named_in_part() -> None:
    rows = [(i, Row((), "yes", source=f"f:{i}")) for i in range(20)]
    finite = FiniteSteps(SimpleNamespace(train_dataset=rows), skips=False)  # type: ignore[arg-type]
    said = finite._named([torch.arange(10), torch.arange(10, 20)])
    assert said.startswith("Its rows: f:0, f:1, ")
    assert said.endswith("f:15 and 4 more.")


@pytest.mark.ranks
def test_all_ranks_stop_where_one_has_a_loss_that_is_not_finite(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    data = disc_data.write(tmp_path / "data", disc_data.records(8))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(Path(__file__).with_name("nan_on_one_rank.py")), str(tiny("llava")), str(data), str(tmp_path)]
    done = subprocess.run([*launch, *script], check=False, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("step 2: the loss is not a finite number.")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0].count("train.jsonl:") == 2  # the rows of one rank alone
