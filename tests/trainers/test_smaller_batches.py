"""``auto_find_batch_size`` takes fewer rows where there is no room for more: whatever counts rows counts those."""

from collections.abc import Callable
from typing import Any

import pytest

from cwdpo.trainers import recomputing

Make = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.parametrize("buckets", [False, True])
def test_batches_shrink(make_trainer: Make, buckets: bool) -> None:
    trainer = make_trainer(
        2, auto_find_batch_size=True, length_buckets=buckets, max_steps=2, gradient_accumulation_steps=2
    )
    compute, seen = trainer.batch_loss, []

    def without_room(model: Any, batch: Any, **given: Any) -> Any:
        seen.append(len(batch["prompts"]))
        if model.training and seen[-1] > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return compute(model, batch, **given)

    trainer.batch_loss = without_room
    assert trainer.step_rows == 8
    trainer.train()
    assert seen == [4, 3, 2, 2, 2, 2]
    assert trainer.step_rows == 4
    if buckets:
        assert trainer._epoch.buckets._step_rows == 4


@pytest.mark.slow
def test_a_trial_step_has_the_rows_of_a_micro_batch(make_trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(2, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1)
    sizes: list[int] = []

    def looked_at(engine: Any, model: Any, batch: Any, budget: Any) -> Any:
        sizes.append(len(batch["prompts"]))
        return [batch], 100

    monkeypatch.setattr(recomputing, "_largest_passes", looked_at)
    rows = recomputing.StepRows(trainer.collate, trainer.row_lengths, None)
    recomputing.decide_recomputing(trainer, rows, None)
    assert sizes == [2]
