"""``cwdpo train`` from outside: settings of the Trainer reach it, or are refused before anything is loaded."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import little_data
import pytest
import yaml

from cwdpo.cli import app

Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(
    tmp_path: Path, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Train:
    """Run ``cwdpo train`` on a tiny LLaVA and eight rows; gives exit code and standard error."""
    little_data.write(tmp_path / "data", little_data.records(8))
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
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe | sections, sort_keys=False))
        monkeypatch.setattr(sys, "argv", ["cwdpo", "train", str(tmp_path / "r.yaml"), *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main()
        return int(left.value.code or 0), capsys.readouterr().err

    return call


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_settings_of_the_method_are_taken_too(train: Train, tmp_path: Path) -> None:
    code, err = train(trainer={"max_tokens_per_batch": 64, "length_buckets": True})
    assert (code, err) == (0, "")
    assert [(line["stage"], line["step"]) for line in lines(tmp_path / "run")] == [("stage1", 1), ("stage2", 1)]
