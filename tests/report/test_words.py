"""The first paragraphs say what the numbers say."""

import json
from pathlib import Path
from typing import Any

from report.markup import Page
from report.synthetic import comparison, write_lines

from cwdpo.report import write_report


def prose(directory: Path, summary: dict[str, Any] | None = None) -> str:
    if summary is not None:
        directory.mkdir(exist_ok=True)
        (directory / "summary.json").write_text(json.dumps(summary))
    return Page(write_report([directory], directory / "report.html").read_text("utf-8")).prose


def run(path: Path, chosen: list[float], margins: list[float]) -> None:
    lines = [
        {"stage": "stage2", "step": step, "logps_mean/chosen": a, "rewards/margins": b}
        for step, (a, b) in enumerate(zip(chosen, margins, strict=True), start=1)
    ]
    write_lines(path / "metrics.jsonl", lines)


def test_leaders_and_ties_are_named(tmp_path: Path) -> None:
    text = prose(tmp_path, {"seed": 3, "table": comparison()})
    assert 'Best of the table: CW-DPO on "Exact captions" and "Hallucination rate"; SFT and CW-DPO on "ECE".' in text
    assert '"Exact captions" (higher is better): SFT 0.583, DPO 0.421 and CW-DPO 0.604.' in text
    assert "one run of one seed, so a small difference may be chance" in text


def test_another_winner_is_named_when_the_numbers_say_so(tmp_path: Path) -> None:
    table = comparison()
    for row in table["rows"]:
        row |= {"halluc": None, "ece": 0.02, "exact": 0.9 if row["name"] == "DPO" else 0.5}
    text = prose(tmp_path, {"table": table})
    assert 'Best of the table: DPO on "Exact captions".' in text
    assert "chance" not in text  # nothing says how many seeds there were


def test_no_winner_without_a_difference(tmp_path: Path) -> None:
    table = comparison()
    table["rows"] = [{**table["rows"][0], "name": name} for name in ("A", "B")]
    assert "Best of the table" not in prose(tmp_path, {"table": table})


def test_chosen_answers_that_fall_while_the_margin_grows(tmp_path: Path) -> None:
    run(tmp_path / "dpo", [-0.5, -0.75, -1.0, -1.25, -1.5], [0.0, 1.0, 2.0, 3.0, 4.0])
    expected = "dpo, stage 2: the chosen answers' log-prob fell from -0.50 to -1.50 nats per token, although the reward"
    assert f"{expected} margin went from 0.00 to 4.00." in prose(tmp_path)


def test_chosen_answers_that_rise_or_stay(tmp_path: Path) -> None:
    run(tmp_path / "a", [-0.5, -0.4, -0.3, -0.2, -0.1], [0.0, 0.5, 1.0, 1.5, 2.0])
    run(tmp_path / "b", [-0.501, -0.5, -0.5, -0.5, -0.499], [0.0] * 5)
    text = prose(tmp_path)
    assert "a, stage 2: the chosen answers' log-prob rose from -0.50 to -0.10 nats per token, and the" in text
    assert "b, stage 2: the chosen answers' log-prob stayed about -0.50 nats per token, and the" in text


def test_seed_hardware_and_time_are_shown(tmp_path: Path) -> None:
    summary = {"title": "T", "seed": 7, "hardware": "2 CPU cores", "cwdpo_version": "0.1.0", "wall_seconds": 402.4}
    text = prose(tmp_path, summary | {"stages": {"stage1": {"steps": 90}}, "table": comparison()})
    shown = prose(tmp_path, summary | {"settings": {"learning_rate": 3e-4}, "legend": "x: y.", "table": comparison()})
    assert "Settings learning rate 0.0003" in shown
    assert "x: y. Run" in shown
    assert "Seed 7 Hardware 2 CPU cores cwdpo 0.1.0 Time 6 min 42 s Stage 1 steps 90" in text


def test_a_change_within_the_scatter_is_no_change(tmp_path: Path) -> None:
    run(tmp_path / "cw_dpo", [-0.5, -0.1, -0.5, -0.1, -0.4], [0.0] * 5)
    assert "log-prob stayed about -0.40 nats per token" in prose(tmp_path)


def test_four_readings_are_too_few_to_say_where_a_curve_went(tmp_path: Path) -> None:
    run(tmp_path / "dpo", [-0.5, -1.0, -1.5, -2.0], [0.0] * 4)
    assert "log-prob fell" not in prose(tmp_path)


def test_a_stage_is_told_briefly(tmp_path: Path) -> None:
    engine = {"asked": "auto", "choices": [{"engine": "tree", "checks": {"gap": 9.5e-07}}, {"engine": "tree"}, 3]}
    stage = {"rows": 240, "steps": 6, "engine": engine, "probes": {"readings": 2, "more": {"deep": 1}}, "list": [1]}
    text = prose(tmp_path, {"stages": {"stage2": stage}, "table": comparison()})
    assert "Stage 2 rows 240, steps 6, probes readings 2, engine tree Results" in text
