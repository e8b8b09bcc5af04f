"""What a log line sums up, against counting in Python; lists stay out of what loggers get."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.data.rows import Row
from cwdpo.records import RunDirectory, read_jsonl
from cwdpo.trainers.callbacks import MetricsRecorder
from cwdpo.trainers.step_metrics import StepMetrics, histogram


def by_hand(values: Sequence[float]) -> list[int]:
    counts = [0] * 10
    for value in values:
        counts[9 if value >= 0.9 else int(f"{value:.7f}"[2])] += 1
    return counts


def test_bins_are_counted_as_by_hand() -> None:
    rng = random.Random(1)
    values = [*(rng.random() for _ in range(300)), *(k / 10 for k in range(11)), 1e-9, 1 - 1e-7]
    assert histogram(torch.tensor(values)) == by_hand(values)
    assert histogram(torch.tensor([math.nan, 0.5, 1.0])) == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert histogram(torch.tensor([])) == [0] * 10


def test_counts_begin_again_with_every_line_and_are_of_the_weights_alone() -> None:
    seen = StepMetrics()
    seen.add({"cooling": torch.tensor([0.05, 0.95]), "loss": torch.tensor([1.0])})
    seen.add({"cooling": torch.tensor([1.0])})
    summary = seen.summary()
    assert seen.histograms == {"cooling/histogram": [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]}
    assert all(isinstance(value, float) for value in summary.values())
    seen.add({"cooling": torch.tensor([0.25])})
    seen.summary()
    assert seen.histograms == {"cooling/histogram": [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]}
    seen.summary()
    assert seen.histograms == {}


@pytest.mark.slow
@pytest.mark.parametrize("constant", [None, 0.7])
def test_lines_of_training_count_every_negative(
    make_trainer: Callable[..., Any], rows: list[Row], tmp_path: Path, constant: float | None
) -> None:
    weights: list[list[float]] = []
    trainer = make_trainer(
        2,
        max_steps=4,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        logging_steps=2,
        cooling_constant=constant,
        eval_rows=rows[:3],
        eval_strategy="steps",
        eval_steps=2,
    )
    weigh = trainer._weight

    def watched(mean: torch.Tensor) -> torch.Tensor:
        found = weigh(mean)
        if trainer.model.training:
            weights.append(found.tolist())
        return found

    trainer._weight = watched
    run = RunDirectory(tmp_path)
    trainer.add_callback(MetricsRecorder(run, "stage2", histograms=lambda: trainer.histograms))
    trainer.train()
    lines = read_jsonl(run.metrics).objects
    found = [line["cooling/histogram"] for line in lines if "loss" in line]
    assert found == [by_hand([w for step in half for w in step]) for half in (weights[:4], weights[4:])]
    assert [sum(counts) for counts in found] == [8, 8]
    assert not [line for line in lines if "eval_loss" in line and "cooling/histogram" in line]
    assert all(isinstance(value, int | float) for entry in trainer.state.log_history for value in entry.values())
