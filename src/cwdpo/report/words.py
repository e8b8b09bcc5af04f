"""The report's first paragraphs: what the numbers of these runs say, and nothing that they do not."""

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.report.panels import stage_label
from cwdpo.report.runs import Run, Source, counted, objects
from cwdpo.report.series import Segment, finite
from cwdpo.report.tables import Table, best_rows

_FEWEST = 5
"""Readings of a stage that it takes to say where a curve went."""

_DIRECTION = {"up": "higher is better", "down": "lower is better"}


def lead(sources: Sequence[Source], runs: Sequence[Run], tables: Sequence[Table]) -> list[str]:
    """First what is compared and who leads, then a sentence on each fact that shows it."""
    said = [" ".join([_what_is_here(runs, tables), *(text for table in tables if (text := _leaders(table)))])]
    said += [text for table in tables if (text := _first_judged(table))]
    fates = [sentence for run in runs if (sentence := _chosen_fate(run))]
    if fates:
        said += [*fates, "From and to: means over the first and the last tenth of that stage's readings."]
    if len(tables) == 1 and len(tables[0].rows) > 1 and any(type(s.summary.get("seed")) is int for s in sources):
        said.append("Each row of the table is one run of one seed, so a small difference may be chance.")
    return said


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Seed, hardware, version, times and settings of a ``summary.json``, as label and text."""
    found = []
    for key, label in (("seed", "Seed"), ("hardware", "Hardware"), ("cwdpo_version", "cwdpo")):
        if summary.get(key) is not None:
            found.append((label, str(summary[key])))
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
    return f"Compared here: {joined(names)}."


def _leaders(table: Table) -> str | None:
    """Who has the best value of which judged columns; None where no column tells the rows apart."""
    wins: dict[str, list[str]] = {}
    for i, column in enumerate(table.columns):
        best = best_rows(table, i)
        if best:
            wins.setdefault(joined([name for name, _ in best]), []).append(f'"{column.label}"')
    if not wins:
        return None
    return f"Best of the table: {'; '.join(f'{name} on {joined(labels)}' for name, labels in wins.items())}."


def _first_judged(table: Table) -> str | None:
    """Everyone's value of the first column that has a better and a worse."""
    for i, column in enumerate(table.columns):
        if column.better:
            values = joined([f"{name} {cells[i].text}" for name, cells in table.rows])
            return f'"{column.label}" ({_DIRECTION[column.better]}): {values}.'
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


def _stage_facts(told: object) -> str:
    """What a summary says of a stage, with its engines by name; how they were checked is left out."""
    if not isinstance(told, dict):
        return _flat(told)
    engines = [str(choice["engine"]) for choice in objects(told.get("engine"), "choices") if "engine" in choice]
    rest = _flat({key: value for key, value in told.items() if key != "engine"})
    named = f"engine {joined(list(dict.fromkeys(engines)))}" if engines else ""
    return ", ".join(part for part in (rest, named) if part)


def _flat(value: object, *, depth: int = 2) -> str:
    """Names and values of a mapping; what lies deeper, and lists, are left out."""
    if isinstance(value, dict):
        too_deep = list if depth > 1 else (list, dict)
        shown = {key: inner for key, inner in value.items() if not isinstance(inner, too_deep)}
        return ", ".join(
            f"{str(key).replace('_', ' ')} {_flat(inner, depth=depth - 1)}" for key, inner in shown.items()
        )
    number = finite(value)
    return str(value) if number is None else f"{number:.4g}" if isinstance(value, float) else str(value)
