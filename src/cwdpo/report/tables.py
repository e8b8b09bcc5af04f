"""Tables and sentences of the report: results and who leads, where curves ended, and the diagnosis of every run."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from markupsafe import Markup, escape

from cwdpo.diagnosis import Diagnosis, Finding, examine, read_recording, title_of
from cwdpo.diagnosis.signs import SIGNS
from cwdpo.errors import DataError
from cwdpo.phases import PHASES
from cwdpo.records import RunDirectory, read_object
from cwdpo.report.charts import Segment, finite
from cwdpo.report.panels import CHOSEN_PROBES, METRICS, Measure, changes, levels, number
from cwdpo.report.runs import Run, Source, counted, objects, stage_label

_FORMAT = re.compile(r"\+?,?(\.\d)?[dfeg%]")
"""Format strings that are obeyed. Others (a width of a billion) could make a page that no browser opens."""


class Column(NamedTuple):
    """One measured column and which way is better (``up``, ``down`` or None)."""

    key: str
    label: str
    better: str | None
    format: str


class Cell(NamedTuple):
    """A number as it is sorted and as it is shown; value is None where there is none."""

    value: float | None
    text: str
    best: bool = False
    tied: bool = False
    """Whether it is best; whether others of its column are as good."""

    error: float | None = None
    """Standard error, where it is known."""


class Table(NamedTuple):
    """Columns, and for every name one cell a column."""

    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def comparison_table(summary: Mapping[str, Any]) -> Table | None:
    """The ``table`` of a ``summary.json``; None where it has none that can be read.

    A row's ``KEY error`` is the standard error of its ``KEY``."""
    table = summary.get("table")
    columns = [_column(entry) for entry in objects(table, "columns") if "key" in entry]
    rows = objects(table, "rows")
    if not columns or not rows:
        return None
    cells = [
        [_cell(row.get(column.key), column.format, row.get(f"{column.key} error")) for column in columns]
        for row in rows
    ]
    marked = _with_best(columns, cells)
    return Table(columns, [(str(row.get("name", "?")), line) for row, line in zip(rows, marked, strict=True)])


def ends_table(runs: Sequence[Run], num_findings: Sequence[int]) -> Table:
    """Where the metrics of each run ended, for runs side by side; nothing is judged here."""
    columns, rows = _last_values(runs, METRICS)
    first = [Column("steps", "Last step", None, "d"), Column("findings", "Findings", None, "d")]
    for run, found, cells in zip(runs, num_findings, rows, strict=True):
        cells[:0] = [Cell(float(count), str(count)) for count in (run.num_steps, found)]
    return Table([*first, *columns], [(run.name, cells) for run, cells in zip(runs, rows, strict=True)])


def probes_table(runs: Sequence[Run]) -> Table | None:
    """The last probe reading of each run: every group's log-prob and its change, then the chosen answers' measures."""
    measured = [run for run in runs if run.probes]
    columns, rows = _last_values(measured, [*levels(runs), *changes(runs), *CHOSEN_PROBES])
    return Table(columns, [(run.name, cells) for run, cells in zip(measured, rows, strict=True)]) if columns else None


def audit_table(runs: Sequence[Run], notes: list[str]) -> Table | None:
    """What ``cwdpo audit`` wrote into the runs: the share of pairs that each shortcut wins, in percent."""
    found: list[tuple[str, dict[str, float]]] = []
    for run in runs:
        file = RunDirectory(run.path).audit
        if not file.is_file():
            continue
        try:
            kept = json.loads(read_object(file))
        except (ValueError, RecursionError):
            kept = None
        shares = {
            str(entry.get("name")): 100 * share
            for key in ("shortcuts", "separations")
            for entry in objects(kept, key)
            if (share := finite(entry.get("value"))) is not None
        }
        if shares:
            found.append((run.name, shares))
        else:
            notes.append(f"{run.name}: audit.json cannot be read and was left out.")
    names = list(dict.fromkeys(name for _, shares in found for name in shares))
    if not names:
        return None
    cells = [[_cell(shares.get(name), ".1f") for name in names] for _, shares in found]
    columns = [Column(name, name[:1].upper() + name[1:], None, ".1f") for name in names]
    return Table(columns, [(name, line) for (name, _), line in zip(found, cells, strict=True)])


def _last_values(runs: Sequence[Run], measures: Sequence[Measure]) -> tuple[list[Column], list[list[Cell]]]:
    """Columns for the measures that any run has, and each run's cells."""
    columns: list[Column] = []
    rows: list[list[Cell]] = [[] for _ in runs]
    for measure in measures:
        values = [_last(measure, run) for run in runs]
        if any(value is not None for value in values):
            title = f"{measure.title}, log-prob" if measure.key == "mean_logprob" else measure.title
            columns.append(Column(f"{measure.group} {measure.key}", title, None, "g"))
            for row, value in zip(rows, values, strict=True):
                row.append(Cell(value, "-" if value is None else number(value)))
    return columns, rows


def _last(measure: Measure, run: Run) -> float | None:
    """Where a curve ended; of a probe the last finite reading itself: they are few and exact."""
    series = measure.of(run)
    if series is None:
        return None
    return series.end if measure.group is None else next(reversed(series.values), None)


def _column(entry: Mapping[str, Any]) -> Column:
    better, form = entry.get("better"), str(entry.get("format", ".3g"))
    return Column(
        key=str(entry["key"]),
        label=str(entry.get("label", entry["key"])),
        better=better if better in ("up", "down") else None,
        format=form if _FORMAT.fullmatch(form) else ".3g",
    )


def _cell(value: object, form: str, error: object = None) -> Cell:
    """A number as text, with its standard error where it has one."""
    known, spread = finite(value), finite(error)
    if known is None:
        return Cell(None, "-" if value is None else str(value))
    if spread is not None:
        return Cell(known, f"{known:{form}} ± {spread:{form.lstrip('+')}}", error=spread)
    if not form.endswith("d"):
        return Cell(known, format(known or 0.0, form))
    return Cell(known, format(int(known), form) if known.is_integer() else format(known, ".3g"))


def _with_best(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Mark the best of each judged column. Values that are shown alike, or differ by less than two of their standard
    errors, share the mark, and if all do none has it. Where a table has errors, columns without them are not judged."""
    marked = [list(row) for row in rows]
    has_errors = any(cell.error is not None for row in rows for cell in row)
    for i, column in enumerate(columns):
        cells = [row[i] for row in rows if row[i].value is not None]
        known = [cell.value for cell in cells if cell.value is not None]
        if column.better is None or len(known) < 2 or (has_errors and all(cell.error is None for cell in cells)):
            continue
        best = cells[known.index(max(known) if column.better == "up" else min(known))]
        winners = [row for row in marked if row[i].value is not None and _is_as_good(row[i], best)]
        if len(winners) < len(known):
            for row in winners:
                row[i] = row[i]._replace(best=True, tied=len(winners) > 1)
    return marked


def _is_as_good(cell: Cell, best: Cell) -> bool:
    if cell.text == best.text or cell.value is None or best.value is None:
        return cell.text == best.text
    if cell.error is None and best.error is None:
        return False
    return abs(cell.value - best.value) <= 2 * math.hypot(cell.error or 0.0, best.error or 0.0)


_FEWEST = 5
"""Readings of a stage that it takes to say where a curve went."""


_MOST_IN_A_SENTENCE = 5
"""Numbers of a column that a sentence lists."""


def lead(sources: Sequence[Source], runs: Sequence[Run], tables: Sequence[Table]) -> list[str]:
    """First what is compared and who leads, then a sentence on each fact that shows it."""
    sentences = [" ".join([_what_is_here(runs, tables), *(text for table in tables if (text := _leaders(table)))])]
    sentences += [text for table in tables if (text := _first_judged(table))]
    fates = [sentence for run in runs if (sentence := _chosen_fate(run))]
    if fates:
        sentences += [*fates, "From and to: means over the first and the last tenth of that stage's readings."]
    if len(tables) == 1 and len(tables[0].rows) > 1 and any(type(s.summary.get("seed")) is int for s in sources):
        sentences.append("Each row of the table is one run of one seed, so a small difference may be chance.")
    return sentences


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Seed, hardware, version, times and settings of a ``summary.json``, as label and text."""
    labels = {"seed": "Seed", "hardware": "Hardware", "cwdpo_version": "cwdpo"}
    found = [(label, str(summary[key])) for key, label in labels.items() if summary.get(key) is not None]
    seconds = finite(summary.get("wall_seconds"))
    if seconds is not None:
        found.append(("Time", duration(seconds)))
    stages = summary.get("stages")
    if isinstance(stages, dict):
        found += [(stage_label(str(stage)).capitalize(), _stage_facts(value)) for stage, value in stages.items()]
    settings = summary.get("settings")
    if isinstance(settings, dict):
        found.append(("Settings", _flat(settings)))
    return found


def phase_seconds(summary: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each phase of a ``summary.json``, in the order of a run."""
    given = summary.get("seconds")
    known = {name: finite(given.get(name)) for name in PHASES} if isinstance(given, dict) else {}
    return {name: value for name, value in known.items() if value is not None and value > 0}


def phase_names(seconds: Mapping[str, float]) -> list[tuple[int, str]]:
    """The bar's legend: a rank, which gives the colour, and each phase with its time and share."""
    whole = sum(seconds.values())
    return [(i, f"{name} {duration(value)} ({value / whole:.0%})") for i, (name, value) in enumerate(seconds.items())]


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(4.21), duration(75), duration(7260)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def joined(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    Example:
        >>> joined(["SFT", "DPO", "CW-DPO"])
        'SFT, DPO and CW-DPO'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _what_is_here(runs: Sequence[Run], tables: Sequence[Table]) -> str:
    if len(runs) == 1:
        stages = joined([stage_label(stage) for stage in runs[0].stages])
        return f"{runs[0].name} trained {counted(runs[0].num_steps, 'step')} ({stages})."
    names = [run.name for run in runs] or [name for table in tables for name, _ in table.rows]
    return f"Compared here: {joined([_quoted(name) for name in names])}."


def _quoted(name: str) -> str:
    """A name that has a comma of its own is one item of a list all the same."""
    return f'"{name}"' if "," in name else name


def _leaders(table: Table) -> str | None:
    """Who has the best value of which judged columns, alone or with one other; None where no column shows it."""
    wins: dict[str, list[str]] = {}
    for i, column in enumerate(table.columns):
        best = [name for name, cells in table.rows if cells[i].best]
        if 0 < len(best) <= 2:
            wins.setdefault(joined([_quoted(name) for name in best]), []).append(f'"{column.label}"')
    if not wins:
        return None
    return f"Best of the table: {'; '.join(f'{name} on {joined(labels)}' for name, labels in wins.items())}."


def _first_judged(table: Table) -> str | None:
    """Everyone's value of the first column that has a better and a worse; None where they are so many that the table
    is easier to read."""
    for i, column in enumerate(table.columns):
        if column.better and len(table.rows) <= _MOST_IN_A_SENTENCE:
            values = joined([f"{name} {cells[i].text}" for name, cells in table.rows])
            return f'"{column.label}" ({"higher" if column.better == "up" else "lower"} is better): {values}.'
    return None


def _chosen_fate(run: Run) -> str | None:
    """How the chosen answers' log-prob moved over the last stage that logged it, and the margin beside it."""
    chosen = _last_segment(run, "logps_mean/chosen")
    if chosen is None or chosen.start is None or chosen.end is None or len(chosen.values) < _FEWEST:
        return None
    start, end = round(chosen.start, 2), round(chosen.end, 2)
    verb = "stayed" if start == end or not chosen.moved else "rose" if end > start else "fell"
    moved = f"stayed about {end:.2f}" if verb == "stayed" else f"{verb} from {start:.2f} to {end:.2f}"
    where = f"{run.name}, {stage_label(chosen.stage)}"
    text = f"{where}: the chosen answers' log-prob {moved} nats per token"
    margin = _last_segment(run, "rewards/margins")
    if margin is not None and margin.stage == chosen.stage and margin.start is not None and margin.end is not None:
        start, end = round(margin.start, 2), round(margin.end, 2)
        link = "although" if verb == "fell" and end > start else "and"
        text += f", {link} the reward margin went from {start:.2f} to {end:.2f}"
    return text + "."


def _last_segment(run: Run, key: str) -> Segment | None:
    series = run.metrics.get(key)
    return next((s for s in reversed(series.segments) if s.values), None) if series else None


def _stage_facts(entry: object) -> str:
    """A stage of a summary, with its engines by name; how they were checked is left out."""
    if not isinstance(entry, dict):
        return _flat(entry)
    engines = [str(choice["engine"]) for choice in objects(entry.get("engine"), "choices") if "engine" in choice]
    rest = _flat({key: value for key, value in entry.items() if key != "engine"})
    named = f"engine {joined(list(dict.fromkeys(engines)))}" if engines else ""
    return ", ".join(part for part in (rest, named) if part)


def _flat(value: object, *, depth: int = 2, is_share: bool = False) -> str:
    """Names and values of a mapping, shares in percent; what lies deeper, and lists, are left out."""
    if isinstance(value, dict):
        too_deep = list if depth > 1 else (list, dict)
        shown = {key: inner for key, inner in value.items() if not isinstance(inner, too_deep)}
        return ", ".join(
            f"{str(key).replace('_', ' ')} {_flat(inner, depth=depth - 1, is_share=str(key).startswith('share'))}"
            for key, inner in shown.items()
        )
    if not isinstance(value, float) or finite(value) is None:
        return str(value)
    return f"{value:.0%}" if is_share else f"{value:.4g}"


class Problem(NamedTuple):
    """A finding, or what ended a stage before its last step, in the words of the page."""

    title: str
    where: str
    evidence: str
    advice: str


State: TypeAlias = Literal["found", "clear", "unknown", "idle"]
"""``idle``: a sign of preference training, in a run that trained none."""


@dataclass(frozen=True)
class Verdict:
    """What the diagnosis says of one run."""

    rank: int
    name: str
    headline: str
    found_nothing: bool
    """See :attr:`cwdpo.diagnosis.Diagnosis.found_nothing`."""

    findings: Sequence[Problem]
    stopped: Sequence[Problem]
    clear: Sequence[str]
    missing: Sequence[tuple[str, str, str]]
    """Sign, stages, and the readings that it needs."""

    looked_at: Sequence[str]
    notes: Sequence[str]
    states: Mapping[str, tuple[State, str]]
    """Of every sign, by its name, and the state in words."""


class FindingsTable(NamedTuple):
    """Runs x findings, for those that at least one run has."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[State, str]]]]


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """The diagnosis of every run."""
    return [_verdict(rank, run) for rank, run in enumerate(runs)]


def findings_table(found: Sequence[Verdict]) -> FindingsTable | None:
    """Runs side by side; None for a single run, and where no run has a finding."""
    names = [sign.name for sign in SIGNS if any(verdict.states[sign.name][0] == "found" for verdict in found)]
    if len(found) < 2 or not names:
        return None
    rows = [(verdict.name, [verdict.states[name] for name in names]) for verdict in found]
    return FindingsTable([title_of(name) for name in names], rows)


def diagnosis_of(path: Path) -> Diagnosis:
    """A run's diagnosis: from its ``findings.json``, or made from its readings where these are newer."""
    run = RunDirectory(path)
    readings = [file.stat().st_mtime_ns for file in (run.recipe, run.metrics, run.probes) if file.is_file()]
    if run.findings.is_file() and run.findings.stat().st_mtime_ns >= max(readings, default=0):
        recorded = Diagnosis.from_json(_findings_file(run))
        if recorded is not None:
            return recorded
    try:
        recording = read_recording(path)
    except DataError:
        return examine([])
    return examine(recording.readings, beta=recording.beta, notes=recording.notes)


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


def _verdict(rank: int, run: Run) -> Verdict:
    diagnosis = diagnosis_of(run.path)
    stopped = [_ended(entry) for entry in objects(_findings_file(RunDirectory(run.path)), "stopped")]
    found: dict[str, list[str]] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.name, []).append("found" if finding.stage is None else stage_label(finding.stage))
    states: dict[str, tuple[State, str]] = {sign.name: ("idle", "does not apply") for sign in SIGNS}
    states |= {name: ("clear", "not found") for name in diagnosis.clear}
    unjudged: dict[str, list[str]] = {}
    for missing in diagnosis.not_judged:
        unjudged.setdefault(missing.name, []).append(stage_label(missing.stage))
    states |= {name: ("unknown", f"not judged in {joined(stages)}") for name, stages in unjudged.items()}
    states |= {name: ("found", joined(stages)) for name, stages in found.items()}
    return Verdict(
        rank=rank,
        name=run.name,
        headline=f"{diagnosis.headline}.{' A stage ended early.' if stopped else ''}",
        found_nothing=diagnosis.found_nothing,
        findings=[_problem(finding) for finding in diagnosis.findings],
        stopped=stopped,
        clear=[title_of(name).lower() for name in diagnosis.clear],
        missing=[
            (title_of(name), joined([stage_label(stage) for stage in stages]), needs)
            for name, stages, needs in diagnosis.missing()
        ],
        looked_at=diagnosis.looked_at,
        notes=diagnosis.notes,
        states=states,
    )


def _problem(finding: Finding) -> Problem:
    """The evidence begins with stage and step; where these are known they have a place of their own."""
    begin = f"{finding.stage}, step {finding.step}: " if finding.stage else f"step {finding.step}: "
    evidence = finding.evidence.removeprefix(begin)
    where = f"step {finding.step}" if finding.stage is None else f"{stage_label(finding.stage)}, step {finding.step}"
    return Problem(title_of(finding.name), where, evidence[:1].upper() + evidence[1:], finding.advice)


def _ended(entry: Mapping[str, Any]) -> Problem:
    stage, name = stage_label(str(entry.get("stage", "a stage"))), title_of(str(entry.get("finding", "a finding")))
    title = f"{stage.capitalize()} ended early at step {entry.get('step', '?')}: {name.lower()}"
    if isinstance(entry.get("readings"), int):
        title += f" in {counted(entry['readings'], 'reading')} in a row"
    return Problem(f"{title}.", "", str(entry.get("evidence", "")), str(entry.get("advice", "")))


def _findings_file(run: RunDirectory) -> object:
    """The content of ``findings.json``; None where it cannot be read."""
    try:
        return json.loads(read_object(run.findings))
    except (OSError, ValueError, RecursionError):
        return None
