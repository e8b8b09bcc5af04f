"""Ranks evaluate equally many rows, some of them twice; what they report counts each row once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import disc_data

pytestmark = pytest.mark.ranks


def evaluated(ranks: int, model: Path, data: Path, out: Path) -> dict[str, Any]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    script = [str(Path(__file__).with_name("evaluate_on_ranks.py")), str(model), str(data), str(out)]
    done = subprocess.run([*launch, *script], check=False, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    found: dict[str, Any] = json.loads(line.removeprefix("found "))
    return found


def test_two_ranks_evaluate_like_one(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """1, 3, 4 and 5 rows in batches of 2: the second rank has none, one or all of the last rows for itself."""
    data = disc_data.write(tmp_path / "data", disc_data.records(5, text_only_every=3))
    one, two = (evaluated(ranks, tiny("llava"), data, tmp_path / f"{ranks}") for ranks in (1, 2))
    assert len(one) == 8
    for name, alone in one.items():
        assert two[name]["metrics"] == pytest.approx(alone["metrics"], abs=1e-5), name
        for ours, theirs in zip(two[name]["predictions"], alone["predictions"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5), name
