"""The diagnosis of each run as the report tells it: what was found, what was not, and what nobody could judge."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup, escape

from cwdpo.diagnosis import Diagnosis, Finding, examine, read_recording, title_of
from cwdpo.diagnosis.signs import SIGNS
from cwdpo.errors import DataError
from cwdpo.records.run_directory import RunDirectory
from cwdpo.report.panels import stage_label
from cwdpo.report.runs import Run, counted, objects
from cwdpo.report.words import joined


@dataclass(frozen=True)
class Told:
    """A finding in the words of the page."""

    title: str
    where: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Stopped:
    """What ended a stage before its last step."""

    summary: str
    evidence: str
    advice: str


@dataclass(frozen=True)
class Verdict:
    """What the diagnosis says of one run."""

    rank: int
    name: str
    headline: str
    findings: Sequence[Told]
    stopped: Sequence[Stopped]
    clear: str
    """Signs that were looked for and not found, as a sentence lists them; empty if there are none."""

    missing: Sequence[tuple[str, str, str]]
    """Sign, stages, and the readings that it wanted."""

    looked_at: Sequence[str]
    notes: Sequence[str]
    found: dict[str, str]
    """Name of a sign -> the stages it was found in."""

    clear_names: frozenset[str]
    """Names of the signs that were looked for and found in no stage."""

    unjudged: frozenset[str]
    """Names of the signs that could not be judged in at least one stage."""


def coded(text: str) -> Markup:
    """What stands between backticks as code, everything else as text.

    Example:
        >>> coded("write `beta: 0.2` & go on")
        Markup('write <code>beta: 0.2</code> &amp; go on')
    """
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


State = Literal["found", "clear", "unknown", "idle"]
"""``idle``: a sign of preference training, in a run that trained none."""


@dataclass(frozen=True)
class FindingsTable:
    """Runs x findings, for those that at least one run has."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[State, str]]]]


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """The diagnosis of every run, from its own readings."""
    return [_verdict(rank, run) for rank, run in enumerate(runs)]


def findings_table(found: Sequence[Verdict]) -> FindingsTable | None:
    """Runs side by side; None for a single run, and where no run has a finding."""
    names = [sign.name for sign in SIGNS if any(sign.name in verdict.found for verdict in found)]
    if len(found) < 2 or not names:
        return None
    rows = [(verdict.name, [_state(verdict, name) for name in names]) for verdict in found]
    return FindingsTable([title_of(name) for name in names], rows)


def _state(verdict: Verdict, name: str) -> tuple[State, str]:
    if name in verdict.found:
        return "found", verdict.found[name]
    if name in verdict.clear_names:
        return "clear", "not found"
    return ("unknown", "not judged") if name in verdict.unjudged else ("idle", "does not apply")


def _verdict(rank: int, run: Run) -> Verdict:
    try:
        recording = read_recording(run.path)
        diagnosis = examine(recording.readings, beta=recording.beta, notes=recording.notes)
    except DataError:
        diagnosis = examine([])
    stopped = _stopped(run)
    found: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.name, []).append(_stage_of(finding))
    return Verdict(
        rank=rank,
        name=run.name,
        headline=_headline(diagnosis, list(found), stopped),
        findings=[_told(finding) for finding in diagnosis.findings],
        stopped=stopped,
        clear=joined([title_of(name).lower() for name in diagnosis.clear]) if diagnosis.clear else "",
        missing=[
            (title_of(name), joined([stage_label(stage) for stage in stages]), needs)
            for name, stages, needs in diagnosis.missing()
        ],
        looked_at=diagnosis.looked_at,
        notes=diagnosis.notes,
        found={name: joined(stages) for name, stages in found.items()},
        clear_names=frozenset(diagnosis.clear),
        unjudged=frozenset(missing.name for missing in diagnosis.not_judged),
    )


def _headline(diagnosis: Diagnosis, found: Sequence[str], stopped: Sequence[Stopped]) -> str:
    early = " A stage ended early." if stopped else ""
    if found:
        return f"{joined([title_of(found[0]), *(title_of(name).lower() for name in found[1:])])}.{early}"
    if not diagnosis.clear:
        return f"Nothing could be judged: too few readings.{early}"
    num_clear = len(diagnosis.clear)
    unjudged = len({missing.name for missing in diagnosis.not_judged} - set(diagnosis.clear))
    if unjudged > num_clear:
        return f"Too few readings to say much: {counted(num_clear, 'sign')} not found, {unjudged} not judged.{early}"
    rest = f"; {unjudged} more could not be judged" if unjudged else ""
    return f"No problem found: {counted(num_clear, 'sign')} looked for{rest}.{early}"


def _told(finding: Finding) -> Told:
    """The evidence begins with stage and step; where these are known they have a place of their own."""
    begin = f"{finding.stage}, step {finding.step}: " if finding.stage else f"step {finding.step}: "
    evidence = finding.evidence.removeprefix(begin)
    where = f"step {finding.step}" if finding.stage is None else f"{stage_label(finding.stage)}, step {finding.step}"
    return Told(title_of(finding.name), where, evidence[:1].upper() + evidence[1:], finding.advice)


def _stage_of(finding: Finding) -> str:
    return "found" if finding.stage is None else stage_label(finding.stage)


def _stopped(run: Run) -> list[Stopped]:
    """What ``findings.json`` says that only the run itself could know."""
    try:
        content = json.loads(RunDirectory(run.path).findings.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    return [_ended(entry) for entry in objects(content, "stopped")]


def _ended(entry: dict[str, Any]) -> Stopped:
    stage, name = (stage_label(str(entry.get("stage", "a stage"))), title_of(str(entry.get("finding", "a finding"))))
    summary = f"{stage.capitalize()} ended early at step {entry.get('step', '?')}: {name.lower()}"
    readings = entry.get("readings")
    if isinstance(readings, int):
        summary += f" in {counted(readings, 'reading')} in a row"
    return Stopped(f"{summary}.", str(entry.get("evidence", "")), str(entry.get("advice", "")))
