"""Recipes run under torchrun, on one process or two."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cwdpo.records import read_jsonl

SCRIPT = Path(__file__).parents[1] / "trainers" / "ranks_script.py"


def launch(ranks: int, runs: Mapping[str, Sequence[str]], *, environment: Mapping[str, str] | None = None) -> str:
    """Run recipes one after the other on this many ranks, which spend most of their time on imports; ``runs`` are their
    arguments by a name. Gives what they printed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    words = [str(SCRIPT), str(ranks), json.dumps({name: list(words) for name, words in runs.items()})]
    done = subprocess.run(
        [*torchrun, *words],
        check=False,
        timeout=400,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def compare_weights(one: Path, two: Path, stages: Sequence[str]) -> None:
    """What the stages leave is the same to 1e-5."""
    for stage in stages:
        (name,) = (path.name for path in (one / stage).glob("*model.safetensors"))
        first, second = load_file(one / stage / name), load_file(two / stage / name)
        assert first.keys() == second.keys()
        for weight, value in first.items():
            torch.testing.assert_close(value, second[weight], atol=1e-5, rtol=1e-5, msg=lambda text, w=weight: w + text)


def compare_metrics(one: Path, two: Path, keys: Sequence[str]) -> int:
    """What the stages log is the same to 1e-5; gives the number of lines."""
    lines = [read_jsonl(out / "metrics.jsonl").objects for out in (one, two)]
    for our, their in zip(*lines, strict=True):
        for key in keys:
            assert our.get(key) == pytest.approx(their.get(key), abs=1e-5, rel=1e-5), (key, our["step"])
    return len(lines[0])
