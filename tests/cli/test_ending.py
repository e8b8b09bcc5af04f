"""What ``cwdpo train`` prints at its end."""

import json
from pathlib import Path

import pytest

from cwdpo.cli.ending import ending, found_in, next_commands, numbers_of
from cwdpo.diagnosis import Diagnosis, Finding
from cwdpo.records import RunDirectory, SignName, Stage


def with_findings(root: Path, names: list[SignName], clear: list[SignName]) -> RunDirectory:
    run = RunDirectory(root)
    findings = [Finding(name=name, evidence=f"step 3: {name} is here.", advice=f"Avoid {name}.") for name in names]
    run.write_findings(Diagnosis(findings, ["x"], clear, [], []).to_json())
    return run


def with_probes(root: Path, *readings: tuple[Stage, int, float, float]) -> RunDirectory:
    lines = []
    for stage, step, chosen, rejected in readings:
        common = {"stage": stage, "step": step, "n": 32}
        lines.append({**common, "group": "chosen", "mean_logprob": chosen, "top1": 0.7 + step / 1000, "ece": 0.05})
        lines.append({**common, "group": "rejected", "mean_logprob": rejected})
    (root / "probes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunDirectory(root)


def finish(run: RunDirectory, stage: Stage, *, adapter: bool) -> None:
    run.stage(stage).mkdir(parents=True)
    (run.stage(stage) / ("adapter_config.json" if adapter else "config.json")).write_text("{}")
    run.mark_finished(stage)


@pytest.mark.parametrize(
    ("names", "clear", "first"),
    [
        ([], ["squeezing"], "diagnosis: no problem found: 1 sign looked for"),
        ([], [], "diagnosis: nothing could be judged: too few readings"),
        (["squeezing", "overconfidence", "squeezing"], [], "diagnosis: squeezing, overconfidence"),
    ],
)
def test_the_end_of_a_run_says_what_was_found(
    tmp_path: Path, names: list[SignName], clear: list[SignName], first: str
) -> None:
    said = list(found_in(with_findings(tmp_path, names, clear)))
    assert said[0] == first
    assert len(said) == 1 + 2 * len(names)
    if names:
        assert said[1:3] == ["  squeezing: step 3: squeezing is here.", "    Avoid squeezing."]


def test_a_run_without_readings_says_so(tmp_path: Path) -> None:
    assert list(found_in(RunDirectory(tmp_path))) == ["diagnosis: nothing was logged that could be judged"]
    assert list(numbers_of(RunDirectory(tmp_path), held_out=True)) == []


def test_numbers_before_and_after(tmp_path: Path) -> None:
    readings = [
        ("stage1", 0, -1.0, -2.0),
        ("stage1", 50, -0.8, -2.0),
        ("stage2", 0, -0.8, -2.0),
        ("stage2", 40, -0.9, -3.5),
    ]
    run = with_probes(tmp_path, *readings)
    assert list(numbers_of(run, held_out=True)) == [
        "probes: 32 held-out rows; log-probs in nats per token",
        "                           before  after stage1  after stage2       change",
        "  right answers            -1.000        -0.800        -0.900       +0.100",
        "  rejected answers         -2.000        -2.000        -3.500       -1.500",
        "  right next token          70.0%         75.0%         74.0%  +4.0 points",
        "  calibration error (ECE)    5.0%          5.0%          5.0%  +0.0 points",
    ]
    assert "training rows" in next(numbers_of(run, held_out=False))


def test_one_reading_is_no_before_and_after(tmp_path: Path) -> None:
    assert list(numbers_of(with_probes(tmp_path, ("stage1", 0, -1.0, -2.0)), held_out=True)) == []


def test_three_commands_that_fit_the_run(tmp_path: Path) -> None:
    run = with_findings(tmp_path, ["squeezing"], [])
    finish(run, "stage2", adapter=True)
    names = [line.split()[1] for line in list(next_commands(run, "held out.jsonl"))[1:]]
    assert names == ["evaluate", "merge", "diagnose"]
    assert "--data 'held out.jsonl'" in list(next_commands(run, "held out.jsonl"))[1]
    run.evaluation.write_text(json.dumps({"words": "Better."}))
    healthy = with_findings(tmp_path, [], ["squeezing"])
    (run.stage("stage2") / "adapter_config.json").unlink()
    assert [line.split()[1] for line in list(next_commands(healthy, "ROWS"))[1:]] == ["probe", "audit"]


def test_a_run_that_was_done_says_just_that(tmp_path: Path) -> None:
    run = with_findings(tmp_path, ["squeezing"], [])
    finish(run, "stage1", adapter=False)
    [line] = ending(run, held_out=None, was_done=True)
    assert line == f"already finished, nothing to do: {tmp_path}  (model in stage1/, curves in report.html)"
    whole = list(ending(run, held_out=None, was_done=False))
    assert whole[0] == "diagnosis: squeezing"
    assert any(line.startswith("done: ") for line in whole)
    assert whole[-4] == "next:"
