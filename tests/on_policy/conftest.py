"""Fixtures for tests of on-policy training."""

import pytest
from support.stage_trainers import make_trainer, sixteen_rows

from cwdpo.data.rows import Row

__all__ = ["make_trainer", "rows", "sixteen_rows"]


@pytest.fixture(scope="session")
def rows(sixteen_rows: list[Row]) -> list[Row]:
    """What is trained on."""
    return sixteen_rows
