"""``save_total_limit`` keeps what the Trainer keeps, but an old checkpoint goes only when the new one is sealed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.data.rows import Row
from cwdpo.models.checkpoints import seal_checkpoint
from cwdpo.trainers import callbacks

Make = Callable[..., Any]


@pytest.mark.slow
def test_the_limit_is_the_trainers(
    make_trainer: Make, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of three checkpoints is the best; in the end it is the only one, and says which limit it was."""

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))

    def seal(checkpoint: Path) -> None:
        there.append(names())
        seal_checkpoint(checkpoint)

    there: list[list[str]] = []
    monkeypatch.setattr(callbacks, "seal_checkpoint", seal)
    trainer = make_trainer(
        1,
        max_steps=3,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_rows=rows[:2],
        load_best_model_at_end=True,
        greater_is_better=True,
        metric_for_best_model="loss",
    )
    trainer.train()
    one, two, three = ("checkpoint-1", "checkpoint-2", "checkpoint-3")
    assert there == [[one], [one, two], [one, two, three]]
    assert names() == [one]
    assert trainer.args.save_total_limit == 1
    saved = torch.load(tmp_path / "out" / one / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1
