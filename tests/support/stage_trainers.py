"""Rows on disk, and trainers that take a few steps on them: fixtures to import in a conftest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cwdpo.data.reading import read_rows
from cwdpo.data.rows import Row
from cwdpo.models.adapters import add_lora
from cwdpo.models.loading import load_policy, load_processor
from cwdpo.trainers import CWDPOConfig, CWDPOTrainer, SmoothSFTConfig, SmoothSFTTrainer
from support import disc_data

TrainerFactory = Callable[..., Any]

QUIET: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def sixteen_rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Sixteen rows, some without an image."""
    directory: Path = tmp_path_factory.mktemp("rows")
    return read_rows(disc_data.write(directory, disc_data.records(16, text_only_every=5)))


@pytest.fixture
def make_trainer(tiny: Callable[[str], Path], rows: list[Row], tmp_path: Path) -> TrainerFactory:
    """``make_trainer(1 or 2, "llava", lora=False, out="name", **arguments)`` trains on the fixture ``rows``."""

    def make(
        stage: int,
        name: str = "llava",
        *,
        lora: bool = False,
        model: Any = None,
        out: str = "out",
        train_rows: list[Row] | None = None,
        eval_rows: list[Row] | None = None,
        callbacks: Any = None,
        judge: Any = None,
        also_right: Any = None,
        sampler: Any = None,
        **arguments: Any,
    ) -> Any:
        own = {"judge": judge, "also_right": also_right, "sampler": sampler}
        trainer_class: Any = SmoothSFTTrainer if stage == 1 else CWDPOTrainer
        config_class: Any = SmoothSFTConfig if stage == 1 else CWDPOConfig
        if model is None:
            model = load_policy(tiny(name), dtype="float32", freeze_vision=False)
            torch.manual_seed(0)  # of the adapters' first values
            model = add_lora(model, r=4, alpha=8) if lora else model
        return trainer_class(
            model,
            args=config_class(output_dir=str(tmp_path / out), **QUIET | arguments),
            train_dataset=train_rows or rows,
            processing_class=load_processor(tiny(name)),
            eval_dataset=eval_rows,
            callbacks=callbacks,
            **{name: value for name, value in own.items() if value is not None},
        )

    return make
