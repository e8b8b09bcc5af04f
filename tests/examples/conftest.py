"""The emoji example's modules on the path, and a small data set."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "examples" / "emoji"), str(HERE)]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up data set on disk. Read it only."""
    import build
    from made_up import made_up_emoji

    out = tmp_path_factory.mktemp("emoji")
    build.write_data(out, made_up_emoji())
    return out
