"""Tables of the report: numbers with their formats, the best of each column marked, columns a reader can sort."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.report.panels import CHOSEN_PROBES, METRICS, group_title, number, probe_groups
from cwdpo.report.runs import Run, objects
from cwdpo.report.series import finite

_FORMAT = re.compile(r"\+?,?(\.\d)?[dfeg%]")
"""Format strings we obey. Others (a width of a billion) could make a page that no browser opens."""


@dataclass(frozen=True)
class Column:
    """One measured column and which way is better (``up``, ``down`` or None)."""

    key: str
    label: str
    better: str | None
    format: str


@dataclass(frozen=True)
class Cell:
    """A number as it is sorted and as it is shown; value is None where there is none."""

    value: float | None
    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, and for every name one cell a column."""

    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def comparison_table(summary: Mapping[str, Any]) -> Table | None:
    """The ``table`` of a ``summary.json``; None where it has none that can be read."""
    table = summary.get("table")
    columns = [_column(entry) for entry in objects(table, "columns") if "key" in entry]
    rows = objects(table, "rows")
    if not columns or not rows:
        return None
    cells = [[_cell(row.get(column.key), column.format) for column in columns] for row in rows]
    marked = _with_best(columns, cells)
    return Table(columns, [(str(row.get("name", "?")), line) for row, line in zip(rows, marked, strict=True)])


def ends_table(runs: Sequence[Run], num_findings: Sequence[int]) -> Table:
    """Where the curves of each run ended, for runs side by side; nothing is judged here."""
    shown = [measure for measure in METRICS if any(_end(run, measure.key) is not None for run in runs)]
    columns = [
        Column("steps", "Last step", None, "d"),
        Column("findings", "Findings", None, "d"),
        *(Column(measure.key, measure.title, None, ".3g") for measure in shown),
    ]
    rows = []
    for run, count in zip(runs, num_findings, strict=True):
        ends = [_number_cell(_end(run, measure.key)) for measure in shown]
        rows.append((run.name, [Cell(float(run.num_steps), str(run.num_steps)), Cell(float(count), str(count)), *ends]))
    return Table(columns, rows)


def probes_table(runs: Sequence[Run]) -> Table | None:
    """The last probe reading of each run: every group's log-prob and its change, then the chosen answers' measures."""
    groups = probe_groups(runs)
    wanted = [
        *((group, "mean_logprob", f"{group_title(group)}, log-prob") for group in groups),
        *((group, "delta", f"{group_title(group)}, change") for group in groups),
        *(("chosen", measure.key, measure.title) for measure in CHOSEN_PROBES),
    ]
    shown = [
        (group, key, label) for group, key, label in wanted if any(_last(run, group, key) is not None for run in runs)
    ]
    columns = [Column(f"{group} {key}", label, None, ".3g") for group, key, label in shown]
    measured = [run for run in runs if run.probes]
    rows = [(run.name, [_number_cell(_last(run, group, key)) for group, key, _ in shown]) for run in measured]
    return Table(columns, rows) if columns else None


def best_rows(table: Table, position: int) -> list[tuple[str, Cell]]:
    """The rows that share the best shown value of one column; none where the column is not judged."""
    return [(name, cells[position]) for name, cells in table.rows if cells[position].best]


def _end(run: Run, key: str) -> float | None:
    return run.metrics[key].end if key in run.metrics else None


def _last(run: Run, group: str, key: str) -> float | None:
    """The last finite reading of a probe; probes are few and exact, so none is averaged away."""
    series = run.probes.get((group, key))
    return series.values[-1] if series and series.values else None


def _number_cell(value: float | None) -> Cell:
    return Cell(value, "-" if value is None else number(value))


def _column(entry: Mapping[str, Any]) -> Column:
    better, form = entry.get("better"), str(entry.get("format", ".3g"))
    return Column(
        key=str(entry["key"]),
        label=str(entry.get("label", entry["key"])),
        better=better if better in ("up", "down") else None,
        format=form if _FORMAT.fullmatch(form) else ".3g",
    )


def _cell(value: object, form: str) -> Cell:
    known = finite(value)
    if known is None:
        return Cell(None, "-" if value is None else str(value))
    if form.endswith("d"):
        known_text = format(int(known), form) if known.is_integer() else format(known, ".3g")
    else:
        known_text = format(known or 0.0, form)
    return Cell(known, known_text)


def _with_best(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Mark the best of each judged column; values shown alike share the mark, and if all are alike none has it."""
    marked = [list(row) for row in rows]
    for i, column in enumerate(columns):
        known = [value for row in rows if (value := row[i].value) is not None]
        if column.better is None or len(known) < 2:
            continue
        top = max(known) if column.better == "up" else min(known)
        text = next(row[i].text for row in rows if row[i].value == top)
        winners = [row for row in marked if row[i].value is not None and row[i].text == text]
        if len(winners) < len(known):
            for row in winners:
                row[i] = Cell(row[i].value, row[i].text, best=True)
    return marked
