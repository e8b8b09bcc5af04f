"""The page begins with the diagnosis, in the diagnosis's own words."""

import json
import os
import random
from pathlib import Path

from report.markup import Page
from report.synthetic import stage1, write_demo, write_lines

from cwdpo.diagnosis import Diagnosis, examine, read_recording, title_of
from cwdpo.records import PROBE_GROUPS
from cwdpo.report import write_report
from cwdpo.report.panels import _GROUPS
from cwdpo.report.runs import Run, read_sources
from cwdpo.report.tables import diagnosis_of, findings_table, verdicts


def page(*runs: Path, out: Path) -> Page:
    return Page(write_report(runs, out).read_text("utf-8"))


def runs(*paths: Path) -> list[Run]:
    return [run for source in read_sources(paths, []) for run in source.runs]


def test_a_spoiled_run_is_told_first(tmp_path: Path) -> None:
    write_demo(tmp_path)
    run = tmp_path / "dpo"
    found = page(run, out=tmp_path / "a.html")
    recording = read_recording(run)
    diagnosis = examine(recording.readings, beta=recording.beta)
    told = found.prose.split("What went wrong")[1].split(" In numbers ")[0]  # before anything else is told
    assert "Squeezing stage 2, step 120" in told
    assert found.text_of("h4") == [title_of(finding.name) for finding in diagnosis.findings]
    assert len(diagnosis.findings) > 3
    for finding in diagnosis.findings:
        assert all(piece.strip(" .,;:()") in told for piece in finding.advice.split("`"))
        assert finding.evidence.split("`")[0].split(": ")[1][1:].strip() in told
    assert "stage2.trainer.learning_rate" in found.text_of("code")
    assert "non finite loss, reward at start, false negatives, gradient spikes and stalled learning" in told
    assert "Image blindness (stage 1 and stage 2): needs" in told


def test_a_healthy_run_is_told_briefly(tmp_path: Path) -> None:
    write_demo(tmp_path)
    found = page(tmp_path / "cw_dpo", out=tmp_path / "a.html")
    assert "No problem found: 12 signs looked for; 2 more could not be judged." in found.prose
    assert found.text_of("h4") == []


def test_five_steps_are_not_called_healthy(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", stage1(5, random.Random(0)))
    (verdict,) = verdicts(runs(tmp_path))
    assert verdict.headline == "Nothing could be judged: too few readings."
    write_lines(tmp_path / "metrics.jsonl", [{"step": i, "grad_norm": 1.0, "stage": "stage2"} for i in range(30)])
    (verdict,) = verdicts(runs(tmp_path))
    assert verdict.headline.startswith("Too few readings to say much: 2 signs not found, ")


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
