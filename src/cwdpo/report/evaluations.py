"""What ``cwdpo evaluate`` left in a run, for the page: every measure beside the base, and the calibration."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cwdpo.records import RunDirectory, read_object
from cwdpo.report.charts import finite
from cwdpo.report.panels import RunPicture, reliability_picture
from cwdpo.report.runs import Bin, Run, objects, read_bins

VERDICTS = {
    "better": "yes, better",
    "worse": "yes, worse",
    "changed": "yes, changed",
    "no difference shown": "no",
}
"""What the column of verdicts says."""


@dataclass(frozen=True)
class MeasureRow:
    """One measure as the page shows it; the texts are empty where there is nothing to compare with."""

    label: str
    better: str | None
    base: str
    model: str
    difference: str
    verdict: str
    kind: str
    """The verdict in one word, for its colour."""


@dataclass(frozen=True)
class EvaluationPart:
    """One evaluation of one run."""

    rank: int
    run: str
    what: str
    """Rows and base, in words."""

    words: str
    groups: Sequence[tuple[str, Sequence[MeasureRow]]]
    diagram: RunPicture | None
    skipped: str

    @property
    def compared(self) -> bool:
        return any(row.base or row.verdict for _, rows in self.groups for row in rows)


def evaluations(runs: Sequence[Run], notes: list[str]) -> list[EvaluationPart]:
    """The evaluations of all runs; ``notes`` gets a sentence on each that cannot be read."""
    found = []
    for rank, run in enumerate(runs):
        for path in RunDirectory(run.path).evaluations():
            part = _part(rank, run.name, _read(path))
            if part is None:
                notes.append(f"{run.name}: {path.name} cannot be read and was left out.")
            else:
                found.append(part)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_object(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _part(rank: int, run: str, found: Mapping[str, Any]) -> EvaluationPart | None:
    groups: dict[str, list[MeasureRow]] = {}
    for one in objects(found, "measures"):
        if finite(one.get("value")) is not None:
            groups.setdefault(str(one.get("group", "")), []).append(_row(one))
    if not groups:
        return None
    question = found.get("question")
    data = question.get("data") if isinstance(question, dict) else None
    against = found.get("against")
    what = f"{found.get('rows', '?')} rows of {data or 'unknown data'}"
    if isinstance(against, str):
        what += f", beside {Path(against).name or against}"  # a full path is private
    skipped = found.get("skipped")
    left_out = (
        [f"{str(name).replace('_', ' ')} ({why})" for name, why in skipped.items()] if isinstance(skipped, dict) else []
    )
    return EvaluationPart(
        rank=rank,
        run=run,
        what=what,
        words=str(found.get("words", "")),
        groups=list(groups.items()),
        diagram=_diagram(rank, run, found.get("reliability")),
        skipped="; ".join(left_out),
    )


def _row(one: Mapping[str, Any]) -> MeasureRow:
    better, verdict = one.get("better"), one.get("verdict")
    base, difference = one.get("base"), one.get("difference")
    compared = difference if isinstance(difference, dict) else one
    sign = "+" if compared is difference else ""
    shift = f"{measure_number(compared.get('value'), sign=sign)} " if sign else ""
    low, high = (measure_number(compared.get(end), sign=sign) for end in ("low", "high"))
    return MeasureRow(
        label=str(one.get("label", one.get("name", "?"))),
        better=better if better in ("up", "down") else None,
        base=measure_number(base.get("value")) if isinstance(base, dict) else "",
        model=measure_number(one["value"]),
        difference=f"{shift}[{low}, {high}]",
        verdict=VERDICTS.get(str(verdict), ""),
        kind=str(verdict) if verdict in ("better", "worse", "changed") else "none",
    )


def measure_number(value: object, *, sign: str = "") -> str:
    """Three decimals, or the first digit of what would be shown as zero and is more than rounding.

    Example:
        >>> [measure_number(value, sign="+") for value in (0.25, 0.0001, -1e-9)]
        ['+0.250', '+1e-04', '+0.000']
    """
    known = finite(value)
    if known is None:
        return "?"
    known = 0.0 if abs(known) < 1e-6 else known
    return format(known, f"{sign}.3f" if abs(known) >= 5e-4 or known == 0 else f"{sign}.0e")


def _diagram(rank: int, run: str, reliability: object) -> RunPicture | None:
    """The model's bins, and the base's dashed."""
    known = reliability if isinstance(reliability, dict) else {}
    drawn: list[tuple[str, str, Sequence[Bin]]] = []
    for name, kind in (("base", "first"), ("model", "last")):
        bins = read_bins(known.get(name))
        if bins:
            drawn.append((kind, name.capitalize(), bins))
    if not drawn:
        return None
    words = "ECE of tokens: " + ", ".join(f"{name.lower()} {_ece(bins):.3f}" for _, name, bins in drawn) + "."
    svg: Markup = reliability_picture(drawn, label=f"Accuracy over confidence of {run}. {words}")
    return RunPicture(rank, run, svg, words)


def _ece(bins: Sequence[Bin]) -> float:
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / sum(one.n for one in bins)
