"""The number of steps that a run announces, against the Trainer's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

from cwdpo.recipes.announcing import number_of_steps
from cwdpo.trainers import SmoothSFTConfig


class _Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.weight.sum() * x.mean() * 0}


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7, 8, 45])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_epochs": 1},
        {"num_train_epochs": 2.5, "gradient_accumulation_steps": 3},
        {"num_train_epochs": 2, "per_device_train_batch_size": 1},
        {"max_steps": 3},
    ],
)
def test_as_the_trainer_counts(rows: int, settings: dict[str, Any], tmp_path: Path) -> None:
    common = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    args = SmoothSFTConfig(output_dir=str(tmp_path), **{**common, **settings})
    data: Any = [{"x": torch.ones(1)}] * rows
    trainer = Trainer(_Nothing(), args, train_dataset=data)
    trainer.train()
    assert number_of_steps(rows, args) == trainer.state.global_step


def test_processes_share_the_rows(tmp_path: Path) -> None:
    args = SmoothSFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, use_cpu=True)
    assert [number_of_steps(33, args, processes=n) for n in (1, 2, 4)] == [9, 5, 3]
