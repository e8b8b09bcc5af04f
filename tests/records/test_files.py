"""Files that are whole or untouched, and lines that are read whatever happened to their neighbours."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwdpo.records import append_jsonl, read_jsonl, write_json, write_text


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
