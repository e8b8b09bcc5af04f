"""A signal that reaches one of two ranks stops both at the same step."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed
from transformers import TrainerControl, TrainerState

from cwdpo.trainers.callbacks import StopOnSignal


def rank(number: int, store: Path, result: Any) -> None:
    distributed.init_process_group("gloo", init_method=store.as_uri(), rank=number, world_size=2)
    signals, args = StopOnSignal(), SimpleNamespace(device=torch.device("cpu"))
    stopped_at = None
    for step in range(4):
        control = TrainerControl()
        if number == 1 and step == 2:
            signals.received = signal.SIGINT
        signals.on_optimizer_step(args, TrainerState(), control)
        if control.should_training_stop and control.should_save:
            stopped_at = step
            break
    result.put((number, stopped_at))
    distributed.barrier()  # so that neither leaves while the other still needs it
    os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts


def test_ranks_stop_together(tmp_path: Path) -> None:
    context = get_context("fork")
    result = context.SimpleQueue()
    # they meet in a file: a port that was free a moment ago may be taken by now
    children = [context.Process(target=rank, args=(n, tmp_path / "store", result)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert {result.get(), result.get()} == {(0, 2), (1, 2)}
