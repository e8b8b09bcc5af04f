"""Sampled answers beside plain ``generate``: ``python -m benchmarks.sampling [--k 4] [--rounds 3]``.

The model and the rows are those of ``cwdpo bench --whole-run``; the end token is made likely enough that answers end
after 24 tokens or so. Both sides draw the same answers, which is checked.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch

import cwdpo.decoding
from cwdpo.bench.whole_run import write_model, write_rows
from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.generation import Generated, LocalSampler, Sampling
from cwdpo.models.loading import load_policy, load_processor

_END_BIAS = 4.4
"""Added to the end token's logit, of 2,000 that are about equal."""


@dataclass(frozen=True)
class Times:
    """CPU seconds of each round."""

    plain: list[float]
    once: list[float]

    @property
    def ratio(self) -> float:
        return median(once / plain for once, plain in zip(self.once, self.plain, strict=True))


def compare(model: Any, processor: Any, rows: Sequence[Row], sampling: Sampling, *, rounds: int) -> Times:
    """Sample by plain ``generate`` and with prompts read once, in turn; an AssertionError where answers differ."""
    times = Times([], [])
    for _ in range(rounds):
        with mock.patch.object(cwdpo.decoding, "why_not_shared", return_value="asked for"):
            expected, seconds = _timed(model, processor, rows, sampling)
        times.plain.append(seconds)
        found, seconds = _timed(model, processor, rows, sampling)
        times.once.append(seconds)
        assert found == expected, "both draw the same answers"
    return times


def _timed(model: Any, processor: Any, rows: Sequence[Row], sampling: Sampling) -> tuple[list[list[Generated]], float]:
    began = time.process_time()
    answers = LocalSampler(model, processor, sampling).sample(rows, seed=0)
    return answers, time.process_time() - began


def main(arguments: Sequence[str]) -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        write_model(directory / "model")
        write_rows(directory, asked.prompts)
        model: Any = load_policy(directory / "model", dtype="float32").eval()
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]), requires_grad=False)
        head.bias[model.generation_config.eos_token_id] = _END_BIAS
        sampling = Sampling(k=asked.k, max_new_tokens=64, batch_size=asked.k * asked.prompts)
        rows = read_rows(directory / "train.jsonl", image_root=None)
        times = compare(model, load_processor(directory / "model"), rows, sampling, rounds=asked.rounds)
    print(
        f"{asked.prompts} prompts, k = {asked.k}: plain {median(times.plain):.2f} s, prompts read once "
        f"{median(times.once):.2f} s, ratio {times.ratio:.2f} (medians of {asked.rounds} rounds, CPU time)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
