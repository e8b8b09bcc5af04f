"""``cwdpo report`` from outside."""

import http.client
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report.synthetic import stage1, write_lines

from cwdpo.cli import app

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Call ``cwdpo report`` in this process and an empty directory; gives exit code, standard output and error."""

    def inner(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cwdpo", "report", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            app.main()
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return inner


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    for name in ("a", "b"):
        write_lines(tmp_path / name / "metrics.jsonl", stage1(10, random.Random(0)))
    return [tmp_path / "a", tmp_path / "b"]


def test_the_page_of_one_run_lies_in_it(call: Call, runs: list[Path]) -> None:
    (runs[0] / "report.html").write_text("an older page")
    assert call(runs[0]) == (0, f"report: {runs[0] / 'report.html'}\n", "")
    assert "a trained 10 steps" in (runs[0] / "report.html").read_text()
    assert list(Path().iterdir()) == []


def test_the_page_of_several_lies_here_and_may_be_written_again(call: Call, runs: list[Path]) -> None:
    assert call(*runs) == (0, "report: report.html\n", "")
    assert "Compared here: a and b." in Path("report.html").read_text()
    assert call(*runs)[0] == 0
    assert not (runs[0] / "report.html").exists()


@pytest.mark.parametrize("options", [[], ["--out", "report.html"]])
def test_a_file_that_is_no_page_of_ours_is_not_overwritten(call: Call, runs: list[Path], options: list[str]) -> None:
    Path("report.html").write_text("<html>my thesis</html>")
    code, out, err = call(*runs, *options)
    assert (code, out) == (2, "")
    assert err == "report.html is not a report of cwdpo, and nothing else is overwritten. Give another --out.\n"
    assert Path("report.html").read_text() == "<html>my thesis</html>"


def test_out_names_the_page(call: Call, runs: list[Path]) -> None:
    assert call(runs[0], "--out", "new/page.html") == (0, "report: new/page.html\n", "")
    assert Path("new/page.html").is_file()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], r"there is no directory .*nowhere\. Write a run's directory, .*"),
        (["."], r".*here is an empty directory, and a run is needed\. .*"),
        ([".", "--follow", "--port", "0"], r"--port is 0, but must be from 1 to 65535\. Try 8765\."),
        ([".", "--port", "9000"], r"--port has no effect without --follow\. .*"),
        ([".", "--follow", "--out", "x.html"], r"--out has no effect with --follow, .*"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(call: Call, words: list[str], expected: str) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"(?:.*/)?{expected}\n", err), err
    assert list(Path().iterdir()) == []


def test_following_ends_cleanly(tmp_path: Path) -> None:
    """A run that has logged nothing is served; Ctrl-C is no error."""
    command = [sys.executable, "-m", "cwdpo", "report", str(tmp_path), "--follow"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # a shell's background jobs ignore Ctrl-C, and so would the server if pytest is one
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with served:
        try:
            assert served.stdout is not None
            first = served.stdout.readline()
            found = re.fullmatch(r"report: http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)\n", first)
            assert found is not None
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
            connection.request("GET", "/")
            assert b"Waiting for" in connection.getresponse().read()
            served.send_signal(signal.SIGINT)
            out, err = served.communicate(timeout=20)
        finally:
            served.kill()  # leaving the block waits for it
    assert (served.returncode, err) == (0, "")
    assert out == "\nThe page is no longer served. Training continues.\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_loaded(runs: list[Path]) -> None:
    script = (
        "import sys\nfrom cwdpo.cli.app import main\n"
        f"sys.argv = ['cwdpo', 'report', {str(runs[0])!r}]\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True, capture_output=True)
