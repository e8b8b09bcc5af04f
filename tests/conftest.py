"""Fixtures that every test may use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny("llava")`` is a directory with a tiny checkpoint of that class, built once a session. Read it only."""
    built: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in built:
            built[name] = tiny_models.build(name, tmp_path_factory.mktemp("tiny") / name)
        return built[name]

    return checkpoint
