"""Whole runs beside TRL's script: the model and rows are what is said, and the table is made of the runs' CPU time."""

from pathlib import Path

import pytest
import yaml

from cwdpo.bench.whole_run import (
    DEFAULT,
    TRL,
    UNWATCHED,
    WholeRunOptions,
    WholeRunResult,
    _cpu_seconds,
    _recipe,
    whole_run_table,
    write_model,
    write_rows,
)
from cwdpo.config.recipe_file import read_recipe
from cwdpo.data.encode import Encoder
from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError
from cwdpo.models.loading import load_policy, load_processor


@pytest.mark.slow
def test_model_and_rows_are_what_is_said(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_rows(tmp_path, 2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(_recipe(tmp_path, 1)))
    read_recipe(str(tmp_path / "recipe.yaml"))
    rows = read_rows(tmp_path / "train.jsonl", image_root=None)
    encoded = Encoder(load_processor(tmp_path / "model")).encode(rows[0], [rows[0].chosen, *rows[0].rejected])
    assert encoded.image_tokens == 576
    assert all(32 <= len(answer) <= 64 for answer in encoded.answers)
    model = load_policy(tmp_path / "model", dtype="float32")
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(11e6, rel=0.02)


def test_ratios_are_medians_of_rounds() -> None:
    result = WholeRunResult(options=WholeRunOptions(rows=400, epochs=3, rounds=3))
    result.seconds = {TRL: [100.0, 200.0, 100.0], UNWATCHED: [40.0, 60.0, 30.0], DEFAULT: [50.0, 100.0, 60.0]}
    result.summaries = {DEFAULT: {"seconds": {"steps": 30.0, "probes": 10.0}}}
    table = whole_run_table(result).splitlines()
    assert table[0].startswith("400 rows, 3 epochs,")
    assert table[-5] == f"| {TRL} | 100.0 | 1.00 |"
    assert table[-4] == f"| {UNWATCHED} | 40.0 | 0.30 |"
    assert table[-3] == f"| {DEFAULT} | 60.0 | 0.50 |"
    assert table[-1] == f"{DEFAULT}: steps 75%, probes 25% of the time."


def test_seconds_are_those_of_the_process_alone_and_failures_are_told(tmp_path: Path) -> None:
    work = "import time\nwhile time.process_time() < 0.4: pass"
    assert 0.4 <= _cpu_seconds(["-c", work], tmp_path, 1) < 1.0
    assert _cpu_seconds(["-c", "import time; time.sleep(0.3)"], tmp_path, 1) < 0.3
    with pytest.raises(UserError, match="out of luck"):
        _cpu_seconds(["-c", "raise SystemExit('out of luck')"], tmp_path, 1)
