"""Names, the run directory, and files that are whole or untouched."""

import codecs
import errno
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.errors import UserError
from cwdpo.records import (
    COOLING_QUANTILES,
    METRIC_NAMES,
    PROBE_GROUPS,
    ProbeLine,
    ProbeMeasure,
    RunDirectory,
    Side,
    append_jsonl,
    check_place,
    read_jsonl,
    read_object,
    write_json,
    write_text,
)


def test_names_are_those_of_the_contract(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    found = [run.recipe, run.stage("stage1"), run.stage("stage2"), run.metrics, run.probes, run.findings, run.summary]
    names = ["recipe.yaml", "stage1", "stage2", "metrics.jsonl", "probes.jsonl", "findings.json", "summary.json"]
    assert [path.name for path in [*found, run.report]] == [*names, "report.html"]
    assert run.checkpoints("stage2") == tmp_path / "checkpoints" / "stage2"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "a"
    run = RunDirectory.open(root, resume=False)
    RunDirectory.open(root, resume=False)  # still empty
    run.recipe.write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"is not empty, and nothing is overwritten.*--resume"):
        RunDirectory.open(root, resume=False)
    assert RunDirectory.open(root, resume=True) == run
    run.recipe.rename(root / "notes.txt")
    with pytest.raises(UserError, match=r"nothing is overwritten\. Give another --output_dir\."):
        RunDirectory.open(root, resume=False)  # there is nothing to resume


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("there.json", "exists already, and nothing is overwritten. Give another --json, or remove it."),
        ("no/x.json", "there is no directory no. Make it, or give another --json."),
        ("there.json/x.json", "there is no directory there.json. Make it, or give another --json."),
        ("/proc/x.json", "/proc/x.json cannot be written (No such file or directory). Give another --json."),
    ],
)
def test_a_place_for_a_file_is_looked_at_before_the_work(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("")
    with pytest.raises(UserError) as caught:
        check_place(Path(name), option="--json")
    assert str(caught.value).endswith(said)
    check_place(Path("there.json"), is_new=False)
    check_place(Path("new.json"))
    assert os.listdir() == ["there.json"]


def test_a_place_for_a_directory_is_looked_at_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "a" / "b", is_directory=True)
    check_place(tmp_path, is_directory=True, is_new=False)
    with pytest.raises(UserError, match=r"exists already, and nothing is overwritten. Give another --out"):
        check_place(tmp_path, is_directory=True)
    with pytest.raises(UserError, match=r"file is a file, not a directory. Give another --out"):
        check_place(tmp_path / "file", is_directory=True, is_new=False)
    with pytest.raises(UserError, match=r"/proc/a/b cannot be written \("):
        check_place(Path("/proc/a/b"), is_directory=True)
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_names_the_file_that_was_asked_for() -> None:
    with pytest.raises(OSError, match=r"'/proc/x.json'"):
        write_text(Path("/proc/x.json"), "")


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="holds no run to resume"):
        RunDirectory.open(tmp_path, resume=True)
    with pytest.raises(UserError, match="is a file"):
        RunDirectory.open(tmp_path / "thesis.tex", resume=True)
    assert RunDirectory.open(tmp_path / "new", resume=True).root.is_dir()


def test_a_stage_is_finished_only_when_it_says_so(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    run.stage("stage1").mkdir()
    assert not run.is_finished("stage1")
    run.mark_finished("stage1", {"steps": 3})
    assert run.is_finished("stage1")
    assert not run.is_finished("stage2")


def test_a_stage_whose_model_is_gone_is_not_finished(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    run.stage("stage1").mkdir()
    run.mark_finished("stage1")
    run.stage("stage1").rmdir()
    assert not run.is_finished("stage1")
    assert run.was_finished("stage1")


def test_what_is_kept_is_there_for_the_next_session(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    assert run.kept("floor") == {}
    run.keep("floor", {"rule": "gentle", "measured": -1.25})
    assert RunDirectory(tmp_path).kept("floor") == {"rule": "gentle", "measured": -1.25}


def test_resuming_drops_the_later_lines_of_that_stage(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    for step in (1, 2, 3):
        append_jsonl(run.metrics, [{"stage": "stage1", "step": step, "loss": 1.0}])
    for step in (1, 2, 3):
        append_jsonl(run.metrics, [{"stage": "stage2", "step": step, "loss": 1.0}])
        append_jsonl(
            run.probes, [{"stage": "stage2", "step": step, "group": group} for group in ("chosen", "rejected")]
        )
    with run.metrics.open("a") as file:
        file.write('{"stage": "stage2", "st')
    assert run.truncate_after("stage2", 1) == 2 + 1 + 4
    kept = [(line["stage"], line["step"]) for line in read_jsonl(run.metrics).objects]
    assert kept == [("stage1", 1), ("stage1", 2), ("stage1", 3), ("stage2", 1)]
    assert [line["step"] for line in read_jsonl(run.probes).objects] == [1, 1]
    assert run.truncate_after("stage2", 1) == 0


def test_resuming_stage_1_forgets_stage_2(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path, resume=False)
    append_jsonl(run.metrics, [{"stage": "stage1", "step": 5}])
    append_jsonl(run.metrics, [{"stage": "stage2", "step": 1}])
    assert run.truncate_after("stage1", 5) == 1
    assert read_jsonl(run.metrics).objects == [{"stage": "stage1", "step": 5}]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"steps": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_disk_is_an_os_error() -> None:
    with pytest.raises(OSError, match="No space left"):
        append_jsonl(Path("/dev/full"), [{"a": "x" * 100_000}])


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"loss": float("nan"), "more": [float("inf"), 1.5, (-float("inf"),)]})
    assert json.loads((tmp_path / "a").read_text()) == {"loss": None, "more": [None, 1.5, [None]]}
    append_jsonl(tmp_path / "b", [{"loss": float("nan")}])
    assert (tmp_path / "b").read_text() == '{"loss": null}\n'


def test_a_half_written_line_spoils_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    path.write_bytes(path.read_bytes()[:-4])  # killed while it wrote step 2
    append_jsonl(path, [{"step": 3}])
    assert read_jsonl(path) == ([{"step": 1}, {"step": 3}], 1)


def test_whatever_is_no_object_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n[1]\n3\n\xff\xfe\n' + b"[" * 100_000 + b"\n" + b'{"a": "\xe2\x80\xa8"}\n{"b": 2}')
    objects, skipped = read_jsonl(path)
    assert objects == [{"a": 1}, {"a": "\u2028"}, {"b": 2}]
    assert skipped == 4
    assert read_jsonl(tmp_path / "none") == ([], 0)


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=80))
def test_no_bytes_break_reading_or_later_lines(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    added: dict[str, Any] = {"step": 1, "text": "line\nend\u2028"}
    append_jsonl(path, [added])
    assert read_jsonl(path).objects[-1] == added


def test_a_line_holds_every_number_that_has_a_name() -> None:
    assert {*ProbeLine.__annotations__} >= {"stage", "step", "group", *get_args(ProbeMeasure)}
    assert {*COOLING_QUANTILES} < {*METRIC_NAMES}
    assert get_args(Side) == PROBE_GROUPS[:2]


def test_one_process_writes_a_run_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", resume=False)
    holds = (
        "import sys, time; from pathlib import Path; from cwdpo.records import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked(): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, str(run.root)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        who = rf" \(process {other.pid}\)" if Path("/proc/locks").exists() else ""
        said = rf"another process is writing {run.root}{who}\. Wait until it ends"
        with pytest.raises(UserError, match=said), run.locked():
            pass
        run.recipe.touch()
        with pytest.raises(UserError, match=said):  # rather than that the directory is not empty
            RunDirectory.open(run.root, resume=False)
        other.kill()
    with run.locked(), pytest.raises(UserError, match="is not empty"):  # one's own lock is no other process
        RunDirectory.open(run.root, resume=False)
    assert list(run.root.iterdir()) == [run.recipe]


def test_a_log_beside_the_run_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("train.log", "slurm-12.out", "slurm-12.err"):
        (tmp_path / name).write_text("...")
    assert not RunDirectory.open(tmp_path, resume=False).has_begun
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "x.log").touch()  # not where a shell would write it
    with pytest.raises(UserError, match="is not empty"):
        RunDirectory.open(tmp_path, resume=False)


def test_a_worker_that_outlives_its_run_holds_no_lock(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", resume=False)
    holds = (
        "import os, sys, time; from pathlib import Path; from cwdpo.records import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).locked():\n"
        "    os.write(1, b'%d\\n' % os.fork())\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, str(run.root)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        worker = max(int(other.stdout.readline()) for _ in range(2))  # 0 is what the worker prints
        with pytest.raises(UserError, match="another process is writing"), run.locked():
            pass
        other.kill()
        other.wait()
        os.kill(worker, 0)  # it is still there
        with run.locked():
            os.kill(worker, signal.SIGKILL)


def test_where_directories_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def as_nfs(handle: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(handle, operation)

    monkeypatch.setattr("fcntl.flock", as_nfs)
    run = RunDirectory.open(tmp_path / "run", resume=False)
    with run.locked(), pytest.raises(UserError, match="another process is writing"), run.locked():
        pass
    assert [path.name for path in run.root.iterdir()] == [".lock"]
    RunDirectory.open(tmp_path / "run", resume=False)  # which is as good as empty
    assert not run.has_begun


def test_a_file_system_without_locks_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuses)
    with RunDirectory.open(tmp_path / "run", resume=False).locked():
        pass
    assert caplog.messages == [
        f"{tmp_path / 'run'} cannot be locked (No locks available): make sure that no other process writes it"
    ]


def test_absurd_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n' + b"x" * 100 + b"\n" + b'{"b": 2}\n\n{"c":')
    monkeypatch.setattr("cwdpo.records.LONGEST_LINE", 16)
    assert read_jsonl(path) == ([{"a": 1}, {"b": 2}], 2)
    monkeypatch.setattr("cwdpo.records.LARGEST_RECORDS", 50)
    monkeypatch.setattr("cwdpo.records.LARGEST_OBJECT", 50)
    for read in (read_jsonl, read_object):
        with pytest.raises(UserError, match=r"lines\.jsonl has \d+ bytes, more than the 50 that are read"):
            read(path)
