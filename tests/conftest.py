"""Fixtures that every test may use."""

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# a test that waits for its turn on a busy machine has not failed
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny("llava")`` is a directory with a tiny checkpoint of that class, built once a session. Read it only."""
    from tiny import build  # tests that load no model need no torch

    built: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in built:
            built[name] = build(name, tmp_path_factory.mktemp("tiny") / name)
        return built[name]

    return checkpoint
