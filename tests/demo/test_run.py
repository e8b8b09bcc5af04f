"""The whole demo in small: every file is there, and every number in its range."""

import json
from pathlib import Path

import pytest

from cwdpo.data.reading import read_rows
from cwdpo.demo.plans import DemoSettings, base_checkpoint, make_plans
from cwdpo.demo.run import run_demo
from cwdpo.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out, said = tmp_path_factory.mktemp("demo") / "run", []
    result = run_demo(out, seed=3, small=True, say=said.append)
    return out, [*said, result.table]


def test_all_methods_are_measured(demo: tuple[Path, list[str]]) -> None:
    out, said = demo
    summary = json.loads((out / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["table"]["rows"]}
    assert list(rows) == ["base model", "after plain SFT", "SFT", "DPO", "CW-DPO"]
    assert [row["steps"] for row in rows.values()] == [0, 6, 12, 12, 12]
    assert rows["after plain SFT"]["win"] == rows["after plain SFT"]["win_sampled"] == 0.5
    assert rows["base model"]["tv"] is None
    for name in ("SFT", "DPO", "CW-DPO"):
        assert 0 < rows[name]["tv"] < 0.5
        assert rows[name]["chosen_delta"] != 0
        assert all(0 <= rows[name][key] <= 1 for key in ("exact", "hallucination", "win", "ece"))
        assert name in said[-1]


def test_report_and_run_directories(demo: tuple[Path, list[str]]) -> None:
    out, _ = demo
    page = (out / "report.html").read_text()
    assert "CW-DPO" in page
    assert "data:image/png" in page
    for name, stages in (("sft", ["stage1"]), ("dpo", ["stage1", "stage2"]), ("cw_dpo", ["stage1", "stage2"])):
        assert (out / name / "metrics.jsonl").is_file()
        for stage in stages:
            assert (out / name / stage / "config.json").is_file()
            assert (out / name / stage / "processor_config.json").is_file()


def test_sft_goes_on_with_the_rows_of_stage_two(demo: tuple[Path, list[str]]) -> None:
    out, _ = demo
    stages = json.loads((out / "dpo" / "summary.json").read_text())["stages"]
    second = read_rows(out / "world" / "stage2.jsonl")
    assert len(second) == stages["stage2"]["rows"] == 80
    assert {row.id for row in second} < {row.id for row in read_rows(out / "world" / "train.jsonl")}
    assert json.loads((out / "sft" / "summary.json").read_text())["stages"]["stage1"]["rows"] == 80


def test_nothing_is_overwritten(demo: tuple[Path, list[str]]) -> None:
    with pytest.raises(UserError, match="Give another --out"):
        run_demo(demo[0], small=True)


def test_methods_differ_only_where_they_must() -> None:
    plans = make_plans(
        Path("o"),
        base=base_checkpoint(),
        train=Path("t"),
        held_out=Path("h"),
        stage2_rows=Path("s"),
        settings=DemoSettings(),
        seed=1,
    )
    dpo, sft, cooled = (plan.recipe for plan in plans)
    assert dpo.model == cooled.model
    assert dpo.data == cooled.data
    assert dpo.trainer == sft.trainer == cooled.trainer
    assert dpo.stage1 is not None and sft.stage1 is not None and cooled.stage1 is not None  # noqa: PT018
    assert dpo.stage2 is not None and cooled.stage2 is not None  # noqa: PT018
    assert dpo.stage1.trainer == cooled.stage1.trainer
    assert dpo.stage2.trainer == cooled.stage2.trainer == sft.stage1.trainer
    assert (dpo.stage2.cooling, dpo.stage1.objective, sft.stage1.objective) == (None, "plain", "plain")
    assert cooled.stage2.cooling is not None
    assert cooled.stage1.objective == "constrained"
