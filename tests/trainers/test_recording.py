"""A signal that reaches one of two ranks stops both at the same step."""

import os
import signal
import socket
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import torch
from torch import distributed
from transformers import TrainerControl, TrainerState

from cwdpo.trainers.recording import StopOnSignal


def rank(number: int, port: int, result: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=number, world_size=2)
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
    distributed.destroy_process_group()


def test_ranks_stop_together() -> None:
    context = get_context("fork")
    result = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [context.Process(target=rank, args=(n, port, result)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert {result.get(), result.get()} == {(0, 2), (1, 2)}
