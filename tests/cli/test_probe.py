"""``cwdpo probe`` on a tiny checkpoint, and what it says of bad input."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import disc_data
from typer.testing import CliRunner

from cwdpo.cli.app import app
from cwdpo.errors import UserError


def cwdpo(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_data.write(tmp_path_factory.mktemp("data"), disc_data.records(4))


def test_table_and_json(tiny: Callable[[str], Path], data: Path) -> None:
    model = tiny("llava")
    said = cwdpo("probe", model, "--data", data, "--reference", model, "--rows", 3, "--json", "--no-greedy")
    found = json.loads(said)
    assert [line["group"] for line in found["groups"]][:3] == ["chosen", "rejected", "gentle"]
    assert found["groups"][0]["n"] == 3
    assert found["groups"][0]["delta"] == 0
    table = cwdpo("probe", model, "--data", data, "--rows", 3)
    for word in ("chosen", "greedy", "other_image", "blank", f"{found['groups'][0]['mean_logprob']:.4f}", "entropy"):
        assert word in table
    assert "delta" not in table


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "is an empty directory, and a run or a model is needed")],
)
def test_bad_input_says_what_to_write(tmp_path: Path, data: Path, words: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cwdpo("probe", tmp_path, "--data", data, *words)
