"""What ``cwdpo train`` prints at its end: what was found, held-out numbers, where the model is, what to do next."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cwdpo.cli.evaluate import words_of
from cwdpo.records import STAGES, ProbeGroup, ProbeLine, ProbeMeasure, RunDirectory

if TYPE_CHECKING:
    from cwdpo.diagnosis import Diagnosis

_GROUPS: Sequence[tuple[ProbeGroup, str]] = (
    ("chosen", "right answers"),
    ("gentle", "with one mistake"),
    ("rejected", "rejected answers"),
    ("other_image", "under another image"),
)
_MEASURES: Sequence[tuple[ProbeMeasure, str]] = (("top1", "right next token"), ("ece", "calibration error (ECE)"))
_LAST = 2**62  # step: all readings of a stage


def ending(run: RunDirectory, *, held_out: str | None, was_done: bool) -> Iterator[str]:
    """The lines for a finished run; ``held_out`` is the path of the rows that were not trained on, if there are any."""
    if not was_done:
        yield from found_in(run)
        yield from numbers_of(run, held_out=held_out is not None)
    if run.evaluations():
        yield f"evaluated: {words_of(run)}"
    models = [f"{stage}/" for stage in STAGES if run.is_finished(stage)]  # one that was deleted is not named
    left = f"model{'s' if len(models) > 1 else ''} in {' and '.join(models)}, curves in {run.report.name}"
    yield f"{'already finished, nothing to do' if was_done else 'done'}: {run.root}  ({left})"
    if not was_done:
        yield from next_commands(run, held_out or "ROWS")


def found_in(run: RunDirectory) -> Iterator[str]:
    """What the diagnosis of a finished run found, with evidence and advice."""
    from cwdpo.diagnosis import title_of

    diagnosis = _diagnosis(run)
    if diagnosis is None:
        yield "diagnosis: nothing was logged that could be judged"
        return
    yield f"diagnosis: {diagnosis.headline[:1].lower()}{diagnosis.headline[1:]}"
    for finding in diagnosis.findings:
        yield f"  {title_of(finding.name).lower()}: {finding.evidence}"
        yield f"    {finding.advice}"


def numbers_of(run: RunDirectory, *, held_out: bool) -> Iterator[str]:
    """The first and last probe readings of the stages, beside each other; nothing where there are none."""
    columns: list[tuple[str, dict[ProbeGroup, ProbeLine]]] = []
    for stage in STAGES:
        lines = run.readings(stage, until=_LAST)
        if lines and not columns:
            columns.append(("before", _at(lines, lines[0]["step"])))
        if lines and lines[-1]["step"] > lines[0]["step"]:
            columns.append((f"after {stage}", _at(lines, lines[-1]["step"])))
    if len(columns) < 2 or "chosen" not in columns[0][1]:
        return
    rows = "held-out rows" if held_out else "of the training rows, as the recipe has no data.eval"
    number = columns[0][1]["chosen"].get("n", 0)
    yield f"probes: {number} {rows}; log-probs in nats per token"
    table = [["", *(name for name, _ in columns), "change"]]
    for group, words in _GROUPS:
        values = [found[group]["mean_logprob"] for _, found in columns if group in found]
        if len(values) == len(columns):
            table.append([words, *(f"{value:z.3f}" for value in values), f"{values[-1] - values[0]:+z.3f}"])
    for measure, words in _MEASURES:
        shares = [found["chosen"][measure] for _, found in columns if measure in found.get("chosen", {})]
        if len(shares) == len(columns):
            table.append(
                [words, *(f"{value:.1%}" for value in shares), f"{100 * (shares[-1] - shares[0]):+z.1f} points"]
            )
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join(["", row[0].ljust(widths[0]), *cells]).rstrip()


def next_commands(run: RunDirectory, rows: str) -> Iterator[str]:
    """Three commands that fit what the run left, on a file of rows."""
    root, rows = shlex.quote(str(run.root)), shlex.quote(rows)
    stage = next((stage for stage in reversed(STAGES) if run.is_finished(stage)), None)
    diagnosis = _diagnosis(run)
    commands: list[tuple[str, str]] = []
    if not run.evaluations():
        commands.append((f"cwdpo evaluate {root} --data {rows}", "better than before? with intervals"))
    if stage is not None and (run.stage(stage) / "adapter_config.json").is_file():
        commands.append((f"cwdpo merge {root} --out {root}-merged", "one checkpoint, for from_pretrained and vLLM"))
    if diagnosis is not None and diagnosis.findings:
        commands.append((f"cwdpo diagnose {root}", "the findings again, and what could not be judged"))
    commands.append((f"cwdpo probe {root} --data {rows}", "what the model thinks of right and wrong answers"))
    commands.append((f"cwdpo audit {rows} {root}", "can the pairs be separated without the image?"))
    commands = commands[:3]
    width = max(len(command) for command, _ in commands)
    yield "next:"
    for command, why in commands:
        yield f"  {command.ljust(width)}  # {why}"


def _diagnosis(run: RunDirectory) -> "Diagnosis | None":
    from cwdpo.diagnosis import Diagnosis

    return Diagnosis.from_json(json.loads(run.findings.read_text("utf-8"))) if run.findings.is_file() else None


def _at(lines: Sequence[ProbeLine], step: int) -> dict[ProbeGroup, ProbeLine]:
    return {line["group"]: line for line in lines if line["step"] == step}
