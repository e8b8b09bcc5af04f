"""Files of rows, images and encoders for the data tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cwdpo.data.encode import Encoder
from cwdpo.models.loading import load_processor


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """``write_rows({...}, {...})`` is a JSON lines file beside a picture ``a.png`` of 40 x 48 pixels."""
    Image.new("RGB", (40, 48), "red").save(tmp_path / "a.png")

    def write(*records: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def processor_of(tiny: Callable[[str], Path]) -> Callable[[str], Any]:
    """The processor of a tiny checkpoint, loaded once. Do not change it."""
    loaded: dict[str, Any] = {}

    def processor(name: str) -> Any:
        if name not in loaded:
            loaded[name] = load_processor(tiny(name))
        return loaded[name]

    return processor


@pytest.fixture(scope="session")
def encoder_of(processor_of: Callable[[str], Any]) -> Callable[[str], Encoder]:
    """An encoder without a limit for a tiny checkpoint, made once."""
    made: dict[str, Encoder] = {}

    def encoder(name: str) -> Encoder:
        if name not in made:
            made[name] = Encoder(processor_of(name))
        return made[name]

    return encoder
