"""Recipes run under torchrun, on one process or two, and what they leave compared."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cwdpo.records import read_jsonl

SCRIPT = Path(__file__).parents[1] / "trainers" / "ranks_script.py"

ZERO_2 = (
    "--trainer.deepspeed={zero_optimization: {stage: 2}, train_micro_batch_size_per_gpu: auto, "
    "gradient_accumulation_steps: auto, gradient_clipping: auto}"
)


def launch(ranks: int, runs: Mapping[str, Sequence[str | Path]]) -> str:
    """Run recipes one after the other, as imports take longer than they do; ``runs`` are their arguments by a name.
    ``--stop=STAGE:STEP`` ends one there, ``--spoil=STEP`` makes that step's gradient not finite in the last process.
    Gives what was printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    words = [str(SCRIPT), str(ranks), json.dumps({name: list(map(str, run)) for name, run in runs.items()})]
    done = subprocess.run([*torchrun, *words], check=False, timeout=400, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def free_port() -> int:
    """A port for ranks that are started one by one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def start(rank: int, port: int, recipe: Path, settings: Sequence[str]) -> subprocess.Popen[str]:
    """One of two ranks, without a launcher that would end the other."""
    place = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    words = [sys.executable, "-m", "cwdpo", "train", str(recipe), *settings]
    return subprocess.Popen(
        words, env={**os.environ, **place}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def compare_weights(one: Path, two: Path, *, start: Path | None = None) -> None:
    """What a stage leaves is the same to 1e-5; with ``start``, in the weights that the first has changed since."""
    (name,) = (path.name for path in one.glob("*model.safetensors"))
    first, second = load_file(one / name), load_file(two / name)
    assert first.keys() == second.keys()
    before = {} if start is None else load_file(start / name)
    compared = 0
    for weight, value in first.items():
        if weight in before and torch.equal(before[weight], value):
            continue
        torch.testing.assert_close(value, second[weight], atol=1e-5, rtol=1e-5)
        compared += 1
    assert compared > len(first) / 2


def compare_metrics(one: Path, two: Path, keys: Sequence[str]) -> int:
    """What the stages log is the same to 1e-5; gives the number of lines."""
    lines = [read_jsonl(out / "metrics.jsonl").objects for out in (one, two)]
    for our, their in zip(*lines, strict=True):
        for key in keys:
            assert (key in our) is (key in their), (key, our["step"])
            if key in our:
                assert our[key] == pytest.approx(their[key], abs=1e-5, rel=1e-5), (key, our["step"])
    return len(lines[0])
