"""Single answers of a probe set, token by token: how likely each token is when a stage ends, and what changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import UnidentifiedImageError

from cwdpo.records.files import read_jsonl
from cwdpo.records.run_directory import RunDirectory
from cwdpo.report.gallery import UNREADABLE, data_uri
from cwdpo.report.panels import group_title, stage_label
from cwdpo.report.runs import Run, counted, objects
from cwdpo.report.series import finite
from cwdpo.report.tokens import Token, read_tokens

MOST_EXAMPLES = 40
"""Rows of a stage that are shown at most; the notes of the page say how many more there are."""

_MOST_PICTURES = 4
_LABELS = {
    "chosen": "Right answer",
    "gentle": "Gentle negative",
    "rejected": "Rejected",
    "greedy": "The model when the stage began",
    "greedy_end": "The model when the stage ended",
}
_ALIKE = "The model when the stage began and ended"


@dataclass(frozen=True)
class ExampleAnswer:
    """One answer to a row's prompt."""

    group: str
    label: str
    text: str
    tokens: Sequence[Token]
    """Empty where the answer was not measured token by token."""

    end: float | None
    """lbar when the stage ended, nats per token."""

    change: float | None
    """Of lbar since the stage began."""


@dataclass(frozen=True)
class Example:
    """One row: its pictures as ``data:`` URIs (and whether they have few pixels), its prompt and its answers."""

    row: str
    pictures: Sequence[tuple[str, bool]]
    prompt: str
    answers: Sequence[ExampleAnswer]

    @property
    def chosen(self) -> ExampleAnswer | None:
        """The right answer."""
        return next((answer for answer in self.answers if answer.group == "chosen"), None)

    @property
    def margin(self) -> float | None:
        """lbar of the right answer less that of the gentle negative, or of the rejected answer where there is none."""
        right = self.chosen
        for group in ("gentle", "rejected"):
            wrong = [a.end for a in self.answers if a.group == group and a.end is not None]
            if wrong and right is not None and right.end is not None:
                return right.end - max(wrong)
        return None


@dataclass(frozen=True)
class ExampleSet:
    """The examples of one stage of one run."""

    rank: int
    name: str
    stage: str
    is_last: bool
    """Of the run's stages that have examples."""

    examples: Sequence[Example]


def example_sets(runs: Sequence[Run], notes: list[str]) -> list[ExampleSet]:
    """The ``probes/STAGE/examples.jsonl`` of every run; what cannot be shown is told in ``notes``."""
    found = []
    for rank, run in enumerate(runs):
        sets = [(stage, _read_stage(run, stage, notes)) for stage in run.stages]
        filled = [(stage, examples) for stage, examples in sets if examples]
        for stage, examples in filled:
            found.append(ExampleSet(rank, run.name, stage_label(stage), stage == filled[-1][0], examples))
    return found


def example_files(root: Path) -> list[Path]:
    """Where the examples of a run may be, for whoever watches it."""
    return sorted((RunDirectory(root).root / "probes").glob("*/examples.jsonl"))


def _read_stage(run: Run, stage: str, notes: list[str]) -> list[Example]:
    file = next((found for found in example_files(run.path) if found.parent.name == stage), None)
    if file is None:
        return []
    lines = read_jsonl(file)
    where = f"{run.name}, {stage_label(stage)}, examples.jsonl"
    if lines.skipped:
        notes.append(f"{where}: {counted(lines.skipped, 'line')} could not be read, and the others are shown.")
    if len(lines.objects) > MOST_EXAMPLES:
        notes.append(f"{where}: the first {MOST_EXAMPLES} of {len(lines.objects)} rows are shown.")
    return [_example(line, file.parent, where, notes) for line in lines.objects[:MOST_EXAMPLES]]


def _example(line: Mapping[str, Any], directory: Path, where: str, notes: list[str]) -> Example:
    row = str(line.get("row", "?"))
    answers = _with_alike_joined([_answer(entry, f"{where}, row {row}", notes) for entry in objects(line, "answers")])
    pictures = line.get("pictures")
    names = [str(name) for name in pictures] if isinstance(pictures, list) else []
    if len(names) > _MOST_PICTURES:
        notes.append(f"{where}, row {row}: the first {_MOST_PICTURES} of {len(names)} pictures are shown.")
    shown = []
    for name in names[:_MOST_PICTURES]:
        try:
            shown.append(data_uri(directory, name))
        except UnidentifiedImageError:
            notes.append(f"{where}, row {row}: {name!r} is no picture that a page can show.")
        except UNREADABLE as error:
            notes.append(f"{where}, row {row}: the picture {name!r} cannot be shown: {error}.")
    return Example(row, shown, str(line.get("prompt") or ""), answers)


def _answer(entry: Mapping[str, Any], where: str, notes: list[str]) -> ExampleAnswer:
    group, text = str(entry.get("group", "?")), str(entry.get("text") or "")
    tokens = read_tokens(entry)
    if tokens is None:
        notes.append(f"{where}: the tokens of {group!r} and their log-probs do not fit together and were left out.")
    known = [token.end for token in tokens or ()]
    start = [value for item in _list(entry.get("start")) if (value := finite(item)) is not None]
    end = fmean(known) if known else None
    change = end - fmean(start) if end is not None and start and len(start) == len(known) else None
    return ExampleAnswer(group, _LABELS.get(group, group_title(group)), text, tokens or (), end, change)


def _with_alike_joined(answers: Sequence[ExampleAnswer]) -> list[ExampleAnswer]:
    """In the order of the labels; where the model says the same before and after, it is shown once."""
    said = {answer.group: answer.text for answer in answers}
    alike = "greedy" in said and said.get("greedy") == said.get("greedy_end")
    order = list(_LABELS)
    kept = [answer for answer in answers if not (alike and answer.group == "greedy_end")]
    kept.sort(key=lambda answer: order.index(answer.group) if answer.group in order else len(order))
    if not alike:
        return kept
    return [
        ExampleAnswer(**{**vars(answer), "label": _ALIKE}) if answer.group == "greedy" else answer for answer in kept
    ]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
