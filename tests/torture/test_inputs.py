"""Some random input of every sort; ``make torture`` has many more."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from torture.inputs import SORTS, fuzz


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", SORTS)
def test_input_is_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    count = 10 if name == "run directories" else 60
    outcome = fuzz(name, tmp_path, count)
    assert outcome.tried >= count // 2  # what comes twice is tried once
    assert outcome.taken
    assert not outcome.defects
