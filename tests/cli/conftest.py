"""Fixtures for tests of whole commands."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import disc_data

from cwdpo.cli import app

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Train:
    """Run ``cwdpo train`` on a tiny LLaVA and eight rows, if there are no others; gives exit code and errors."""
    model = tiny("llava")

    def call(*words: object, trainer: dict[str, Any] | None = None, **sections: Any) -> tuple[int, str]:
        common = {"max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True}
        recipe = {
            "model": {"name_or_path": str(model)},
            "data": {"train": "data/train.jsonl", "stage1_fraction": 0.5},
            "stage1": {},
            "stage2": {},
            "probes": None,
            "trainer": common | (trainer or {}),
            "output_dir": str(tmp_path / "run"),
        }
        if not (tmp_path / "data" / "train.jsonl").exists():
            disc_data.write(tmp_path / "data", disc_data.records(8))
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | sections, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["cwdpo", "train", str(tmp_path / "r.yaml"), *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        return int(left.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("cwdpo.recipes.stages.load_start", load)
