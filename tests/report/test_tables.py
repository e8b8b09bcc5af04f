"""Tables with their formats and best values, the diagnosis in the page's words, and the first paragraphs."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from report.markup import Page
from report.synthetic import comparison, stage1, write_demo, write_lines

from cwdpo.diagnosis import Diagnosis, examine, read_recording, title_of
from cwdpo.phases import PHASES
from cwdpo.records import PROBE_GROUPS
from cwdpo.report import write_report
from cwdpo.report.page import resource
from cwdpo.report.panels import _GROUPS
from cwdpo.report.runs import Run, read_sources
from cwdpo.report.tables import audit_table, comparison_table, diagnosis_of, findings_table, verdicts


def table(better: str | None, form: str, *values: object) -> list[tuple[str, bool]]:
    """Text and best mark of each value in a table of one column."""
    columns = [{"key": "x", "label": "X", "better": better, "format": form}]
    found = comparison_table({"table": {"columns": columns, "rows": [{"name": str(v), "x": v} for v in values]}})
    assert found is not None
    return [(cells[0].text, cells[0].best) for _, cells in found.rows]


def test_best_follows_the_direction() -> None:
    assert table("up", ".1f", 1, 3, 2) == [("1.0", False), ("3.0", True), ("2.0", False)]
    assert table("down", ".1f", 1, 3, 2) == [("1.0", True), ("3.0", False), ("2.0", False)]
    assert table(None, ".1f", 1, 3) == [("1.0", False), ("3.0", False)]


def test_values_that_look_alike_share_the_mark_or_have_none() -> None:
    assert table("up", ".2f", 0.501, 0.499, 0.1) == [("0.50", True), ("0.50", True), ("0.10", False)]
    assert table("up", ".2f", 0.501, 0.499) == [("0.50", False), ("0.50", False)]
    assert table("up", ".2f", 0.5) == [("0.50", False)]


def test_what_is_no_number_is_shown_and_never_best() -> None:
    assert table("down", ".1f", None, "n/a", float("nan"), 2, 1) == [
        ("-", False),
        ("n/a", False),
        ("nan", False),
        ("2.0", False),
        ("1.0", True),
    ]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (".3f", "1234.500"),
        ("+.2f", "+1234.50"),
        (",.1f", "1,234.5"),
        (".0%", "123450%"),
        ("d", "1.23e+03"),
        (".3g", "1.23e+03"),
    ],
)
def test_formats(form: str, text: str) -> None:
    assert table(None, form, 1234.5)[0][0] == text


@pytest.mark.parametrize("form", ["999999999d", ".99f", "x", "{}", ""])
def test_format_we_do_not_obey_is_replaced(form: str) -> None:
    assert table(None, form, 0.12345)[0][0] == "0.123"


@pytest.mark.parametrize(
    "broken", [None, [], {}, {"columns": 3}, {"columns": [1], "rows": [2]}, {"columns": [{"key": "x"}]}]
)
def test_broken_table_is_no_table(broken: Any) -> None:
    assert comparison_table({"table": broken}) is None


def page(*runs: Path, out: Path) -> Page:
    return Page(write_report(runs, out).read_text("utf-8"))


def runs(*paths: Path) -> list[Run]:
    return [run for source in read_sources(paths, []) for run in source.runs]


def test_audits_are_shown_in_percent(tmp_path: Path) -> None:
    write_demo(tmp_path)
    there, notes = runs(tmp_path / "dpo", tmp_path / "cw_dpo", tmp_path / "sft"), list[str]()
    assert audit_table(there, notes) is None
    longer = {"name": "always the longer, words", "value": 0.625, "low": 0.5, "high": 0.7, "n": 8}
    audit = {"shortcuts": [longer], "separations": [{"name": "words", "value": 0.9}]}
    (tmp_path / "dpo" / "audit.json").write_text(json.dumps(audit))
    (tmp_path / "cw_dpo" / "audit.json").write_text(json.dumps({"shortcuts": [longer]}))
    (tmp_path / "sft" / "audit.json").write_text("{")
    found = audit_table(there, notes)
    assert found is not None
    assert [column.label for column in found.columns] == ["Always the longer, words", "Words"]
    texts = [(name, [cell.text for cell in cells]) for name, cells in found.rows]
    assert texts == [("dpo", ["62.5", "90.0"]), ("cw_dpo", ["62.5", "-"])]
    assert notes == ["sft: audit.json cannot be read and was left out."]
    assert "Shortcuts in the data" in page(tmp_path / "dpo", out=tmp_path / "a.html").prose


def test_a_spoiled_run_is_told_first(tmp_path: Path) -> None:
    write_demo(tmp_path)
    run = tmp_path / "dpo"
    found = page(run, out=tmp_path / "a.html")
    recording = read_recording(run)
    diagnosis = examine(recording.readings, beta=recording.beta)
    shown = found.prose.split("What went wrong")[2].split(" In numbers ")[0]  # before anything else is shown
    assert f"Squeezing stage 2, step {diagnosis.findings[0].step}" in shown
    assert found.text_of("h4") == [title_of(finding.name) for finding in diagnosis.findings]
    assert len(diagnosis.findings) > 3
    for finding in diagnosis.findings:
        assert all(piece.strip(" .,;:()") in shown for piece in finding.advice.split("`"))
        assert finding.evidence.split("`")[0].split(": ")[1][1:].strip() in shown
    assert "stage2.trainer.learning_rate" in found.text_of("code")
    assert "non finite loss, reward at start, false negatives, gradient spikes and stalled learning" in shown
    assert "Image blindness (stage 1 and stage 2): needs" in shown


def test_a_healthy_run_is_told_briefly(tmp_path: Path) -> None:
    write_demo(tmp_path)
    found = page(tmp_path / "cw_dpo", out=tmp_path / "a.html")
    assert "No problem found: 12 signs looked for; 2 more could not be judged in every stage." in found.prose
    assert found.text_of("h4") == []


def test_five_steps_are_not_called_healthy(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", stage1(5, random.Random(0)))
    (verdict,) = verdicts(runs(tmp_path))
    assert verdict.headline == "Nothing could be judged: too few readings."
    write_lines(tmp_path / "metrics.jsonl", [{"step": i, "grad_norm": 1.0, "stage": "stage2"} for i in range(30)])
    (verdict,) = verdicts(runs(tmp_path))
    assert verdict.headline.startswith("Too few readings to say much: 12 of 14 signs")


def test_a_sign_is_unjudged_in_each_stage_that_lacks_readings_of_it(tmp_path: Path) -> None:
    lines = [{"step": i, "loss": 1.0, "stage": stage} for stage, n in (("stage1", 3), ("stage2", 5)) for i in range(n)]
    write_lines(tmp_path / "metrics.jsonl", lines)  # of each stage another number is missing
    (verdict,) = verdicts(runs(tmp_path))
    assert verdict.states["stalled_learning"] == ("unknown", "not judged in stage 1 and stage 2")


def test_runs_side_by_side(tmp_path: Path) -> None:
    write_demo(tmp_path)
    judged = verdicts(runs(tmp_path / "sft", tmp_path / "dpo", tmp_path / "cw_dpo"))
    table = findings_table(judged)
    assert table is not None
    column = table.columns.index("Squeezing")
    assert [(name, states[column]) for name, states in table.rows] == [
        ("sft", ("idle", "does not apply")),
        ("dpo", ("found", "stage 2")),
        ("cw_dpo", ("clear", "not found")),
    ]
    assert table.columns[0] == "Squeezing"  # most harmful first
    assert findings_table(judged[1:2]) is None
    assert findings_table([judged[0], judged[2]]) is None


def test_what_ended_a_stage_is_told(tmp_path: Path) -> None:
    write_demo(tmp_path)
    stopped = {
        "finding": "squeezing",
        "stage": "stage2",
        "step": 40,
        "readings": 2,
        "evidence": "E",
        "advice": "do `x`",
    }
    (tmp_path / "cw_dpo/findings.json").write_text(json.dumps({"stopped": [stopped]}))
    found = page(tmp_path / "cw_dpo", out=tmp_path / "a.html")
    assert "Stage 2 ended early at step 40: squeezing in 2 readings in a row." in found.text_of("h4")
    assert "A stage ended early." in found.prose
    assert "x" in found.text_of("code")


def test_broken_findings_files_are_no_matter(tmp_path: Path) -> None:
    write_demo(tmp_path)
    for content in ("", "[", "[]", "3", '{"stopped": 3}', '{"stopped": [3]}'):
        (tmp_path / "cw_dpo/findings.json").write_text(content)
        (verdict,) = verdicts(runs(tmp_path / "cw_dpo"))
        assert verdict.stopped == []
    (tmp_path / "cw_dpo/findings.json").write_text('{"stopped": [{}]}')
    (verdict,) = verdicts(runs(tmp_path / "cw_dpo"))
    assert verdict.stopped[0].title == "A stage ended early at step ?: a finding."


def test_the_count_of_findings_and_the_last_probe_readings_are_in_tables(tmp_path: Path) -> None:
    write_demo(tmp_path)
    found = page(tmp_path / "dpo", tmp_path / "cw_dpo", out=tmp_path / "a.html")
    values = [a.get("data-value") for a in found.attributes("td")]
    (dpo, cooled) = verdicts(runs(tmp_path / "dpo", tmp_path / "cw_dpo"))
    assert len(dpo.findings) > len(cooled.findings) == 0
    assert f"{len(dpo.findings)}.0" in values
    assert "-2.0" in values  # the chosen group's last mean_logprob: -0.5 - 1.5
    assert "Drift: moved to the argmax" in found.text_of("th")


def test_the_recorded_diagnosis_is_shown_unless_the_readings_are_newer(tmp_path: Path) -> None:
    write_demo(tmp_path)
    run = tmp_path / "dpo"
    recorded = Diagnosis([], ["recorded"], ["squeezing"], [], [])
    (run / "findings.json").write_text(json.dumps(recorded.to_json()))
    readings = [run / name for name in ("metrics.jsonl", "probes.jsonl", "recipe.yaml")]
    for file in readings:
        os.utime(file, (1000, 1000))
    os.utime(run / "findings.json", (1000, 1000))
    assert diagnosis_of(run) == recorded
    for file in readings:
        os.utime(file, (1001, 1001))
        assert "recorded" not in diagnosis_of(run).looked_at
        assert len(diagnosis_of(run).findings) > 3
        os.utime(file, (999, 999))
    assert diagnosis_of(run) == recorded
    (run / "findings.json").unlink()
    assert len(diagnosis_of(run).findings) > 3


def test_a_diagnosis_comes_back_from_its_file(tmp_path: Path) -> None:
    write_demo(tmp_path)
    recording = read_recording(tmp_path / "dpo")
    diagnosis = examine(recording.readings, beta=recording.beta)
    assert Diagnosis.from_json(json.loads(json.dumps(diagnosis.to_json()))) == diagnosis
    for broken in (None, [], {}, {**diagnosis.to_json(), "findings": [{"name": "x"}]}, {"findings": 3}):
        assert Diagnosis.from_json(broken) is None


def test_every_probe_group_is_explained() -> None:
    assert set(_GROUPS) == set(PROBE_GROUPS)


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


def test_where_the_time_went_is_a_bar_of_shares(tmp_path: Path) -> None:
    seconds = {"report": 10.0, "steps": 60.0, "probes": 30.0, "saving": 0.0, "unknown": 5.0}
    (tmp_path / "summary.json").write_text(json.dumps({"title": "T", "seconds": seconds, "table": comparison()}))
    page = write_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    widths = re.findall(r'<rect class="(p\d)" x="([\d.]+)" y="0" width="([\d.]+)"', page)
    assert widths == [("p0", "0.0", "600.0"), ("p1", "600.0", "300.0"), ("p2", "900.0", "100.0")]
    legend = re.findall(r'<li><i class="(p\d)"></i> (.*)</li>', page)
    assert legend == [("p0", "steps 1 min 0 s (60%)"), ("p1", "probes 30.0 s (30%)"), ("p2", "report 10.0 s (10%)")]


def test_every_phase_has_a_colour() -> None:
    style = resource("page.css")
    assert all(f".p{rank} {{ fill: var(" in style for rank in range(len(PHASES)))


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
