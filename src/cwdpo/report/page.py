"""The report: one HTML file that needs nothing outside itself."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cwdpo.errors import UserError
from cwdpo.records.files import write_text
from cwdpo.records.run_directory import RunDirectory
from cwdpo.report.gallery import Item, read_gallery
from cwdpo.report.lineage import aligned
from cwdpo.report.panels import metric_panels, probe_panels
from cwdpo.report.runs import Run, Source, read_sources
from cwdpo.report.svg import sample
from cwdpo.report.tables import Table, comparison_table, ends_table
from cwdpo.report.words import facts, lead

_MOST_RECIPE = 20_000


@dataclass(frozen=True)
class Part:
    """What one source adds to the page beside its curves."""

    title: str
    facts: Sequence[tuple[str, str]]
    table: Table | None
    caption: str
    gallery: Sequence[Item]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about run directories; reads nothing else and loads no model.

    Args:
        runs: run directories (``metrics.jsonl``, ``probes.jsonl``, ``summary.json``, ``recipe.yaml``), or directories
            that hold one such run a method. Missing, broken or non-finite readings are skipped and told on the page.
        out: the file to write; an older one is replaced only once the new one is complete.

    Returns:
        ``out``.

    Raises:
        UserError: a path is no run directory, holds nothing to show, or ``out`` cannot be a file.
    """
    if out.is_dir():
        raise UserError(f"{out} is a directory. Name the file to write, for example {out / 'report.html'}.")
    notes: list[str] = []
    sources = read_sources([Path(run) for run in runs], notes)
    page = _page(sources, notes)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page.encode("utf-8", "replace").decode())  # JSON can hold half characters that no file can
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}. Name a file in a directory you may write to.") from error
    return out


def _page(sources: Sequence[Source], notes: list[str]) -> str:
    shown, continued = aligned(_distinctly_named([run for source in sources for run in source.runs]))
    parts = [_part(source, notes) for source in sources]
    tables = [part.table for part in parts if part.table is not None]
    style, script = (Markup(resource(name)) for name in ("page.css", "page.js"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(resource("page.html.j2")).render(
        title=parts[0].title if len(parts) == 1 else "Training runs compared",
        policy=content_policy(style, script),
        style=style,
        script=script,
        lead=[*lead(sources, shown, tables), *continued],
        parts=parts,
        legend=[(run.name, sample(rank)) for rank, run in enumerate(shown)],
        samples={run.name: sample(rank) for rank, run in enumerate(shown)},
        charts=[
            ("Training", "training", metric_panels(shown)),
            ("Probes: fixed held-out answers", "probes", probe_panels(shown)),
        ],
        ends=ends_table(shown) if shown else None,
        recipes=[(run.name, text) for run in shown if (text := _recipe(run, notes))],
        notes=notes,
    )


def _part(source: Source, notes: list[str]) -> Part:
    table, gallery = comparison_table(source.summary), read_gallery(source.path, source.summary, notes)
    for key, found in (("table", table), ("gallery", gallery)):
        if source.summary.get(key) and not found:
            notes.append(f"{source.path.name}: the {key} in summary.json cannot be read and was left out.")
    title = str(source.summary.get("title") or source.path.name)
    caption = str(source.summary.get("legend") or "What each model does after training.")
    return Part(title, facts(source.summary), table, caption, gallery)


def _distinctly_named(runs: Sequence[Run]) -> list[Run]:
    """Runs of one name get their directory in front of it, so that the legend can tell them apart."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.parent.name}/{run.path.name}") if names.count(run.name) > 1 else run
        for run in runs
    ]


def _recipe(run: Run, notes: list[str]) -> str:
    file = RunDirectory(run.path).recipe
    if not file.is_file():
        return ""
    text = file.read_text("utf-8", errors="replace")
    if len(text) > _MOST_RECIPE:
        notes.append(f"{run.name}: of recipe.yaml only the first {_MOST_RECIPE} characters are shown.")
    return text[:_MOST_RECIPE]


def content_policy(style: str, script: str) -> str:
    """Content-Security-Policy that allows this page's own style and script, data: pictures, and nothing else."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def resource(name: str) -> str:
    """Text of a file beside this module."""
    return (files("cwdpo.report") / name).read_text("utf-8")
