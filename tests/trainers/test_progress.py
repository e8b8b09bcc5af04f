"""The bar and the plain lines, driven by hand and by a real Trainer."""

import io
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from cwdpo.trainers.callbacks import StageProgress


def state(step: int, *, total: int = 4, rank: int = 0) -> Any:
    return SimpleNamespace(global_step=step, max_steps=total, is_world_process_zero=rank == 0)


def test_lines_hold_the_numbers_and_the_time_left() -> None:
    out = io.StringIO()
    now = [0.0]
    shown = StageProgress("stage2", console=Console(file=out), clock=lambda: now[0])
    logs = {"loss": 0.5, "rewards/margins": 1.25, "cooling/mean": 0.5, "x": 3}
    shown.on_train_begin(None, state(10, total=30), None)  # resumed at step 10
    for step in range(11, 31):
        now[0] += 60.0 if step == 11 else 2.0  # the first step, in which the engine checks itself, is no measure
        shown.on_step_end(None, state(step, total=30), None)
        shown.on_log(None, state(step, total=30), None, logs)
    shown.on_train_end(None, state(30, total=30), None)
    numbers = "  loss 0.500  margin 1.250  w_c 0.500"
    assert out.getvalue().splitlines() == [
        f"stage2  step 11/30{numbers}",
        *(f"stage2  step {step}/30{numbers}  {left} left" for step, left in (
            (12, "0:00:36"), (15, "0:00:30"), (18, "0:00:24"), (21, "0:00:18"), (24, "0:00:12"), (27, "0:00:06"),
        )),
        f"stage2  step 30/30{numbers}",
    ]  # fmt: skip


def test_a_margin_that_rounds_to_0_has_no_sign() -> None:
    out = io.StringIO()
    shown = StageProgress("stage2", console=Console(file=out), clock=lambda: 0.0)
    shown.on_train_begin(None, state(0), None)
    shown.on_log(None, state(1), None, {"loss": 0.5, "rewards/margins": -0.0001})
    assert out.getvalue() == "stage2  step 1/4  loss 0.500  margin 0.000\n"


def test_the_last_line_comes_wherever_a_stage_ends() -> None:
    out = io.StringIO()
    shown = StageProgress("stage1", console=Console(file=out), clock=lambda: 0.0)
    shown.on_train_begin(None, state(0, total=1000), None)
    for step in (1, 2, 3):
        shown.on_step_end(None, state(step, total=1000), None)
    shown.on_train_end(None, state(3, total=1000), None)
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["2/1000", "3/1000"]


def test_a_stage_of_one_step_has_one_line() -> None:
    out = io.StringIO()
    shown = StageProgress("stage1", console=Console(file=out), clock=lambda: 0.0)
    shown.on_train_begin(None, state(0, total=1), None)
    shown.on_step_end(None, state(1, total=1), None)
    shown.on_log(None, state(1, total=1), None, {"loss": 0.5})
    shown.on_train_end(None, state(1, total=1), None)
    assert out.getvalue() == "stage1  step 1/1  loss 0.500\n"


def test_a_slow_stage_is_not_silent() -> None:
    out = io.StringIO()
    now = [0.0]
    shown = StageProgress("stage1", console=Console(file=out), clock=lambda: now[0])
    shown.on_train_begin(None, state(0, total=1000), None)
    for step in range(1, 6):
        now[0] += 400.0
        shown.on_step_end(None, state(step, total=1000), None)
    assert [line.split()[2] for line in out.getvalue().splitlines()] == ["2/1000", "4/1000"]


def test_other_ranks_are_silent() -> None:
    out = io.StringIO()
    shown = StageProgress("stage1", console=Console(file=out, force_terminal=True))
    for hook in (shown.on_train_begin, shown.on_step_end, shown.on_log, shown.on_train_end):
        hook(None, state(4, rank=1), None)
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_that_gives_it_back() -> None:
    out = io.StringIO()
    shown = StageProgress("stage1", console=Console(file=out, force_terminal=True, width=120))
    shown.on_train_begin(None, state(0), None)
    shown.on_prediction_step(None, state(1), None)
    shown.on_evaluate(None, state(1), None)
    shown.on_log(None, state(2), None, {"loss": 0.25})
    shown.on_step_end(None, state(2), None)
    shown.close()
    shown.close()
    last = out.getvalue()
    assert "2/4" in last
    assert "loss 0.250" in last
    assert last.count("\x1b[?25l") == last.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


class _Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).pow(2).mean()}


def trainer(folder: Path, **settings: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, logging_steps=1, disable_tqdm=True, report_to=[], use_cpu=True, **settings
    )
    rows: Any = [{"x": torch.ones(1)}] * 4
    made = Trainer(_Doubling(), arguments, train_dataset=rows, eval_dataset=rows)
    made.remove_callback(PrinterCallback)
    return made


@pytest.mark.slow
def test_a_real_trainer_prints_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    worker = trainer(tmp_path / "stage1", eval_strategy="steps", eval_steps=1)
    worker.add_callback(StageProgress(console=Console(file=out)))
    worker.train()
    assert out.getvalue().splitlines()[-1].startswith("stage1  step 2/2  loss ")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_broken_off_training_gives_the_terminal_back(tmp_path: Path) -> None:
    out = io.StringIO()
    worker = trainer(tmp_path)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    worker.compute_loss = broken
    progress = StageProgress(console=Console(file=out, force_terminal=True))
    worker.add_callback(progress)
    with pytest.raises(KeyboardInterrupt), closing(progress):
        worker.train()
    assert out.getvalue().count("\x1b[?25h") == 1
