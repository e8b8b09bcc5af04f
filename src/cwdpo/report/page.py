"""The report: one HTML file that needs nothing outside itself."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cwdpo.errors import UserError, shortened
from cwdpo.records import RunDirectory, read_object, write_text
from cwdpo.report.charts import phase_bar, sample
from cwdpo.report.evaluations import evaluations
from cwdpo.report.examples import Item, change_labels, example_sets, read_gallery, shade_labels
from cwdpo.report.panels import (
    CHOSEN_PROBES,
    METRICS,
    changes,
    heat_maps,
    levels,
    panels,
    reliability_diagrams,
    share_labels,
)
from cwdpo.report.runs import Run, Source, aligned, read_sources
from cwdpo.report.strip import cards
from cwdpo.report.tables import (
    Table,
    audit_table,
    coded,
    comparison_table,
    ends_table,
    facts,
    findings_table,
    joined,
    lead,
    phase_names,
    phase_seconds,
    probes_table,
    verdicts,
)

GENERATOR = "cwdpo report"
"""Named in the head of every page, so that ours are recognised and nothing else is overwritten."""

_LONGEST_NOTE = 600
_MOST_RECIPE = 20_000
_HOW_TRAINING = (
    "Over training steps, counted through all stages. Thick: moving average; thin: every reading (in long runs the "
    "highest and lowest of each stretch). Vertical lines: a new stage begins. Under each chart: the mean of the last "
    "tenth of the readings. The cooling weight w_c is the factor by which CW-DPO scales the push on a rejected answer."
)
_HOW_LEVELS = (
    "How likely the same held-out answers are at every reading. Line: mean log-prob per token of the group's answers; "
    "band: the middle 80 % of them (p10 to p90). A band that widens downwards shows answers that become very unlikely. "
    "Each chart has its own scale."
)
_HOW_CHANGES = "The means above, minus their values when the stage began."
_HOW_PREDICTIONS = (
    "How the tokens of the held-out chosen answers were predicted, how well calibrated that is, and how far it "
    "drifted. Every token counts the same."
)

GLOSSARY = (
    ("Nat", "The unit of natural logarithms: a log-prob of -1 nat is a probability of 37 %, of -2.3 nats one of 10 %."),
    ("Log-prob", "The logarithm of the probability that a model gives to an answer, here per token, the mean over it."),
    ("Reward", "beta times how much likelier an answer is than under the reference model, which is 0 at the start."),
    ("β·nats", "The unit of rewards and their margin: beta times nats."),
    ("Reward margin", "The reward of the chosen answer minus that of the rejected one."),
    ("Reward accuracy", "The share of pairs in the right order, that is, with a positive reward margin."),
    (
        "Cooling weight, w_c",
        "How hard a rejected answer is pushed down: 1 as in DPO, 0 not at all. Easy ones get less.",
    ),
    ("Squeezing", "Right answers lose probability to the likeliest token while the margin grows."),
    ("Displacement", "Chosen and rejected answers fall together; the probability goes to answers that nobody wrote."),
    ("Argmax", "The likeliest next token. Argmax mass is its mean probability."),
    ("ECE", "Expected calibration error: how far confidence is from accuracy, 0 for a calibrated model."),
    ("TV, JS", "Total variation and Jensen-Shannon divergence: how far predictions moved from the reference."),
    ("Probe", "A fixed set of answers whose log-probs are measured again and again during training."),
    ("±", "One standard error, from the scatter of the readings or from the number of rows."),
)
"""Terms of the page, each in a sentence."""


class Part(NamedTuple):
    """What one source adds to the page beside its curves."""

    title: str
    facts: Sequence[tuple[str, str]]
    seconds: Mapping[str, float]
    """Of each phase."""

    table: Table | None
    caption: str
    gallery: Sequence[Item]


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML page about run directories; reads nothing else and loads no model.

    Each has ``metrics.jsonl``, ``probes.jsonl``, ``summary.json`` and ``recipe.yaml``, or holds one such run a method.
    Missing, broken or non-finite readings are skipped, and the page says so. An older ``out`` is replaced only once the
    new one is complete. Gives ``out``; a UserError for paths that are not runs or hold nothing, or a bad ``out``.
    """
    if out.is_dir():
        raise UserError(f"{out} is a directory. Name the file to write, for example {out / 'report.html'}.")
    page = render_report(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}. Name a file in a directory you may write to.") from error
    return out


def render_report(runs: Sequence[Path], *, following: str | None = None) -> str:
    """The page's text.

    A page that is served while its runs go on has a version, ``following``: it asks its server for a newer one, and
    waits for runs that have logged nothing yet. Errors are those of :func:`write_report`.
    """
    notes: list[str] = []
    sources = read_sources([Path(run) for run in runs], notes, wait=following is not None)
    names = ["page.css", "parts.css", "examples.css", "page.js", "examples.js"]
    names += ["follow.css", "follow.js"] if following else []
    style, script = (
        Markup("".join(resource(name) for name in names if name.endswith(kind))) for kind in (".css", ".js")
    )
    content = _content(sources, notes)
    sections = list(_sections(content))
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=content_policy(style, script, connects=following is not None),
            generator=GENERATOR,
            style=style,
            script=script,
            following=following,
            sections=sections,
            headings=dict(sections),
            **content,
        )
    )
    return page.encode("utf-8", "replace").decode()  # JSON can hold half characters that no file can


@cache
def _environment() -> Environment:
    """Compiles each template once: a page that follows its runs is drawn again and again."""
    environment = Environment(
        loader=FunctionLoader(resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"coded": coded, "joined": joined, "phase_bar": phase_bar, "phase_names": phase_names}
    return environment


def _content(sources: Sequence[Source], notes: list[str]) -> dict[str, Any]:
    runs = [run for source in sources for run in source.runs]
    names = [run.name for run in runs]
    shown, continued = aligned(
        [
            # runs of one name get their directory in front of it, so that the legend distinguishes them
            replace(run, name=f"{run.path.parent.name}/{run.path.name}") if names.count(run.name) > 1 else run
            for run in runs
        ]
    )
    parts = [_part(source, notes) for source in sources]
    tables = [part.table for part in parts if part.table is not None]
    judged = verdicts(shown)
    return {
        "title": parts[0].title if len(parts) == 1 else "Training runs compared",
        "waiting": [
            source.path.name for source, part in zip(sources, parts, strict=True) if not source.runs and not part.table
        ],
        "verdicts": judged,
        "cards": cards(shown, judged),
        "findings_table": findings_table(judged),
        "lead": [*lead(sources, shown, tables), *continued] if shown or tables else [],
        "parts": parts,
        "evaluations": evaluations(shown, notes),
        "legend": [(run.name, sample(rank)) for rank, run in enumerate(shown)],
        "samples": {run.name: sample(rank) for rank, run in enumerate(shown)} if len(shown) > 1 else {},
        "charts": [
            ("training", _HOW_TRAINING, panels(shown, METRICS)),
            ("levels", _HOW_LEVELS, panels(shown, levels(shown))),
            ("changes", _HOW_CHANGES, panels(shown, changes(shown))),
            ("predictions", _HOW_PREDICTIONS, panels(shown, CHOSEN_PROBES)),
        ],
        "heat_maps": heat_maps(shown),
        "heat_shades": share_labels(),
        "diagrams": reliability_diagrams(shown),
        "ends": ends_table(shown, [len(verdict.findings) for verdict in judged]) if shown else None,
        "probe_ends": probes_table(shown),
        "audits": audit_table(shown, notes),
        "example_sets": example_sets(shown, notes),
        "token_shades": shade_labels(),
        "token_changes": change_labels(),
        "recipes": [(run.name, text) for run in shown if (text := _recipe(run, notes))],
        "glossary": GLOSSARY if shown else (),
        "notes": [shortened(note, _LONGEST_NOTE) for note in notes],
    }


def _sections(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Id and heading of the parts that the page has, in their order."""
    parts = list(enumerate(content["parts"], start=1))
    drawn = {name: bool(found) for name, _, found in content["charts"]}
    found = any(verdict.findings for verdict in content["verdicts"])
    wanted = [
        ("runs", "At a glance", content["cards"]),
        ("findings", "What went wrong" if found else "Diagnosis", content["verdicts"]),
        ("summary", "In numbers", content["lead"]),
        *((f"results-{i}", "Results", part.table) for i, part in parts),
        ("evaluation", "Did it help?", content["evaluations"]),
        ("training", "Training", drawn["training"]),
        ("cooling", "Cooling weights", content["heat_maps"]),
        ("levels", "Probes: how likely", drawn["levels"]),
        ("changes", "Probes: changes", drawn["changes"]),
        ("predictions", "Probes: predictions", drawn["predictions"]),
        ("reliability", "Calibration", content["diagrams"]),
        ("ends", "Final values", content["ends"]),
        ("audit", "Shortcuts in the data", content["audits"]),
        ("examples", "Token by token", content["example_sets"]),
        *((f"pictures-{i}", "Pictures and answers", part.gallery) for i, part in parts),
        ("recipes", "Recipes", content["recipes"]),
        ("glossary", "Glossary", content["glossary"]),
    ]
    return ((name, heading) for name, heading, there in wanted if there)


def _part(source: Source, notes: list[str]) -> Part:
    table, gallery = comparison_table(source.summary), read_gallery(source.path, source.summary, notes)
    for key, found in (("table", table), ("gallery", gallery)):
        if source.summary.get(key) and not found:
            notes.append(f"{source.path.name}: the {key} in summary.json cannot be read and was left out.")
    title = str(source.summary.get("title") or source.path.name)
    caption = str(source.summary.get("legend") or "What each model does after training.")
    return Part(title, facts(source.summary), phase_seconds(source.summary), table, caption, gallery)


def _recipe(run: Run, notes: list[str]) -> str:
    file = RunDirectory(run.path).recipe
    if not file.is_file():
        return ""
    text = read_object(file).decode("utf-8", errors="replace")
    if len(text) > _MOST_RECIPE:
        notes.append(f"{run.name}: of recipe.yaml only the first {_MOST_RECIPE} characters are shown.")
    return text[:_MOST_RECIPE]


def content_policy(style: str, script: str, *, connects: bool = False) -> str:
    """CSP for the page's own style and script, data: pictures, its own server if it ``connects``, and nothing else."""
    style_hash, script_hash = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'; "
        "img-src data:; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if connects else "")
    )


def is_page_of(generator: str, file: Path) -> bool:
    """Whether a file is a page that this command wrote, by its head."""
    with file.open("rb") as there:
        return f'<meta name="generator" content="{generator}">'.encode() in there.read(8192)


def resource(name: str) -> str:
    """Text of a file in ``report/assets``."""
    return (files("cwdpo.report") / "assets" / name).read_text("utf-8")
