"""Figures in the README's sentences are those of the tables and of the programs that they come from."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from cwdpo.diagnosis import diagnose

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
IN_LINE = " ".join(README.split())
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
RECORDED = ROOT / "tests" / "diagnosis" / "recorded" / "demo_seed0_dpo.jsonl"


def demo() -> dict[str, dict[str, str]]:
    """The rows of the table that `make demo` prints, by their names."""
    [table] = re.findall(r"```text\n( +exact.*?)```", README, re.DOTALL)
    head, *lines = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines())
    return {line[0]: dict(zip(head, line[1:], strict=True)) for line in lines}


def test_sentences_about_the_demo_follow_from_its_table() -> None:
    rows = demo()
    start, sft, dpo, ours = (rows[name] for name in ("after plain SFT", "SFT", "DPO", "CW-DPO"))

    def points(row: dict[str, str]) -> str:
        return f"{float(start['exact'][:-1]) - float(row['exact'][:-1]):.1f} points"

    more = int(sft["steps"]) - int(start["steps"])
    assert {row["steps"] for row in (sft, dpo, ours)} == {sft["steps"]}
    for said in (
        f"a first phase of {start['steps']} steps",
        f"for {more} more",
        f"its stage 1 ({start['steps']} steps) uses gentle negatives, its stage 2 takes the other {more}",
        f"DPO loses {points(dpo)} of exact answers, and its ECE rises from {start['ECE']} to {dpo['ECE']}",
        f"CW-DPO loses {points(ours)}, with an ECE of {ours['ECE']}",
        f"({ours['exact']} against {sft['exact']})",
    ):
        assert said in IN_LINE, said


def test_the_finding_is_what_the_diagnosis_says_of_the_demo() -> None:
    [shown] = re.findall(r"```text\nSqueezing\n(.*?)```", README, re.DOTALL)
    evidence, advice = (" ".join(part.split()) for part in shown.split("...")[:2])
    found = next(
        each for each in diagnose(map(json.loads, RECORDED.read_text().splitlines())) if each.name == "squeezing"
    )
    assert found.evidence.startswith(evidence)
    assert found.advice.startswith(advice)
    assert len(evidence) > 200


def cpu_times(what: str, setting: str) -> Iterator[float]:
    """Of every step of a setting in docs/performance.md, beside TRL's."""
    now = ""
    for line in PERFORMANCE.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 9:
            now = cells[1] or now
            if now.endswith(f", {setting}") and cells[2] == what:
                yield float(cells[6].split()[0])


def test_the_step_beside_trls_is_that_of_the_page_of_performance() -> None:
    times = [f"{time:.2f}".removeprefix("0") for time in sorted(cpu_times("tree, cached reference", "LoRA"))]
    assert len(times) == 3
    assert f"a step takes {times[0]} to {times[-1]} of the CPU time of TRL's" in IN_LINE


def test_whole_runs_beside_trls_are_those_of_the_page_of_performance() -> None:
    [row] = re.findall(r"^\| `cwdpo train`, probes at their defaults \|(.*)\|$", PERFORMANCE, re.MULTILINE)
    shares = [cell.split(", ")[1].strip() for cell in row.split("|")]
    assert f"a run of 40 rows takes {shares[0]} of the CPU time of TRL's script" in IN_LINE
    assert f"one of 400 rows over three epochs {shares[3]}." in IN_LINE
