"""``cwdpo bench`` on the command line."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.errors import UserError


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    result = CliRunner().invoke(app, ["bench", "--json", str(tmp_path / "out.json")])
    assert isinstance(result.exception, UserError)
    assert "nothing is overwritten" in str(result.exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_needs_a_gpu() -> None:
    result = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    assert isinstance(result.exception, UserError)
    assert "sees no GPU" in str(result.exception)
