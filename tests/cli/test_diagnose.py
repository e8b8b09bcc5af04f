"""``cwdpo diagnose`` from outside."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diagnosis.histories import metrics
from diagnosis.test_signs import DPO, run

from cwdpo.cli import app

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call ``cwdpo diagnose`` in this process; gives exit code, standard output and standard error."""

    def inner(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "diagnose", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return inner


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    return path


def test_a_spoiled_run(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "metrics.jsonl", run(**DPO))
    code, out, err = call(tmp_path)
    assert (code, err) == (0, "")
    assert out.index("Squeezing") < out.index("Likelihood displacement") < out.index("Easy negative saturation")
    assert "stage2.cooling" in out
    assert "image blindness (stage2): probe groups" in out
    written = json.loads((tmp_path / "findings.json").read_text())
    assert written["findings"][0]["name"] == "squeezing"
    stopped = written.pop("stopped")  # known to runs alone
    assert stopped == []
    assert json.loads(call(tmp_path, "--json")[1]) == written


def test_a_sound_history_that_is_no_run_is_not_written_to(call: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", metrics())
    code, out, _ = call(path, "--beta", "0.1")
    assert code == 0
    assert "No problem found: 13 signs looked for; 1 more could not be judged in every stage." in out
    assert "Looked for and not found: non finite loss, reward at start, squeezing" in out
    assert list(tmp_path.iterdir()) == [path]


def test_too_little_is_not_called_fine(call: Call, tmp_path: Path) -> None:
    code, out, _ = call(write(tmp_path / "log.jsonl", [{"stage": "stage2", "step": 5, "entropy": 1.0}]))
    assert code == 0
    assert "Nothing could be judged: too few readings." in out
    assert "squeezing (stage2): `rewards/rejected`" in out
    code, out, err = call(write(tmp_path / "other.jsonl", [{"note": 1}]))
    assert (code, out) == (2, "")
    assert "no line holds a reading that diagnosis knows" in err


def test_bad_input_exits_with_2(call: Call, tmp_path: Path) -> None:
    assert call(tmp_path / "absent")[0] == 2
    code, out, err = call(tmp_path)
    assert (code, out) == (2, "")
    assert err == (
        f"{tmp_path} is an empty directory, and a run is needed. "
        "Write a run's directory, a trainer_state.json, or a JSONL file of logs.\n"
    )
    assert "--beta is 0.0" in call(write(tmp_path / "a.jsonl", metrics()), "--beta", "0")[2]


def test_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "log.jsonl", metrics())
    script = (
        f"import sys\nfrom cwdpo.cli.app import main\nsys.argv = ['cwdpo', 'diagnose', {str(path)!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
