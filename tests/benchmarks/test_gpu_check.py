"""The check for GPUs runs in small, and what goes wrong in one part leaves the others alone."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import PARTS, Bench, Found, NotHereError, main, run, table


@pytest.mark.slow
def test_in_small_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--small", "--out", str(tmp_path), "--parts", "kernels", "rounding", "sampling", "tower", "long", "flex"])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "gpu_check.json").read_text(encoding="utf-8"))
    assert set(found["missing"]) == {"flex"}
    assert "backward pass on a CPU" in printed
    values = {(one["part"], one["what"], one["quantity"]): one["value"] for one in found["readings"]}
    assert {part for part, _, _ in values} == {"kernels", "rounding", "sampling", "tower"}  # `long` has peaks alone
    assert all(value > 0 for (_, _, quantity), value in values.items() if quantity.endswith("ms"))
    assert "failed" not in {quantity for _, _, quantity in values}
    assert values["kernels", "split, L 80", "gradient gap"] < 1e-5
    for attention in ("mask", "split"):
        assert values["rounding", f"tree, {attention}", "largest gap to plain rows, nats"] < 1e-5
        assert values["rounding", f"tree, {attention}", "largest reward at step 0"] < 1e-5


@pytest.mark.bench
def test_steps_beside_trl(tmp_path: Path) -> None:
    result = run(Bench(True, tmp_path, repeats=1), parts=["steps"])
    assert result.missing == {}
    ways = [one.what for one in result.readings if one.quantity == "ms"]
    assert ways[:5] == ["TRL", "tree, mask", "tree, split", "tree, split, PEFT's layers", "tree, split, features"]
    assert ways[5:] == [f"{way}, checkpointing" for way in ways[:5]]


@pytest.mark.slow
def test_a_part_that_fails_or_takes_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: Bench) -> Iterator[Found]:
        yield "something", "ms", 1.5
        raise RuntimeError("broken\nand more")

    def hangs(bench: Bench) -> Iterator[Found]:
        yield "first", "ms", 2.0
        time.sleep(30)

    def is_missing(bench: Bench) -> Iterator[Found]:
        raise NotHereError("no such card")
        yield

    def works(bench: Bench) -> Iterator[Found]:
        yield "last", "MB", 3.0

    parts = {"fails": (fails, 9), "hangs": (hangs, 2), "missing": (is_missing, 9), "works": (works, 9)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    result = run(Bench(True, tmp_path), parts=list(parts))
    assert [(one.part, one.what, one.value) for one in result.readings] == [
        ("fails", "something", 1.5),
        ("hangs", "first", 2.0),
        ("works", "last", 3.0),
    ]
    assert result.missing == {
        "fails": "RuntimeError: broken",
        "hangs": "TimeoutError: its 2 s were over",
        "missing": "no such card",
    }
    assert "| hangs | | not measured: TimeoutError: its 2 s were over |" in table(result)
    assert "| works | last | MB 3 |" in table(result)
    assert run(Bench(True, tmp_path), parts=["works"], total=0.5).missing == {"works": "TimeoutError: no time was left"}


def test_all_parts_fit_into_the_time_that_is_promised() -> None:
    assert sum(seconds for _, seconds in PARTS.values()) <= gpu_check.TOTAL <= 480


def test_without_a_gpu_it_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "none")])
    assert stopped.value.code == 2
    assert "--small" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
