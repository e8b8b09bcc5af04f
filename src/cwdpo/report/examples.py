"""Single answers of a probe set, token by token: how likely each token is when a stage ends, and what changed."""

import base64
import io
import math
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from cwdpo.records import RunDirectory, read_jsonl, read_object
from cwdpo.report.panels import group_title
from cwdpo.report.runs import Run, counted, numbers, objects, stage_label

PROBABILITIES = (0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01)
"""Below each of these a token has the next stronger shade."""

CHANGES = (0.05, 0.25, 1.0, 3.0)
"""Nats; a change of so much or more has the next stronger mark."""


@dataclass(frozen=True)
class Token:
    """A token as it is shown."""

    text: str
    end: float
    """Log-prob when the stage ended, nats."""

    change: float | None
    """Since the stage began."""

    @property
    def classes(self) -> str:
        """Shade, then mark."""
        return f"s{shade(self.end)}" + (f" {mark(self.change)}" if self.change is not None else "")

    @property
    def title(self) -> str:
        """What is shown when the pointer rests on it."""
        percent = 100 * math.exp(min(self.end, 0.0))
        likely = f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"
        change = "" if self.change is None else f", {self.change:+z.2f} since the stage began"
        return f"log-prob {self.end:.2f} ({likely}){change}"


def read_tokens(entry: Mapping[str, Any]) -> list[Token] | None:
    """Tokens of one answer; none where it was not measured, None where its lists do not fit together."""
    tokens, end, start = (entry.get(key) for key in ("tokens", "end", "start"))
    if tokens is None or end is None:
        return []
    ends, starts = numbers(end), numbers(end if start is None else start)
    if not isinstance(tokens, list) or ends is None or starts is None or not len(tokens) == len(ends) == len(starts):
        return None
    return [
        Token(visible(str(token)), now, None if start is None else now - before)
        for token, now, before in zip(tokens, ends, starts, strict=True)
    ]


def shade(logprob: float) -> int:
    """Class of a log-prob: 0 for nearly certain, 8 for under 1 %.

    Example:
        >>> [shade(math.log(p)) for p in (0.99, 0.93, 0.6, 0.02, 0.001)]
        [0, 1, 3, 7, 8]
    """
    return sum(math.exp(min(logprob, 0.0)) < least for least in PROBABILITIES)


def mark(change: float) -> str:
    """Class of a change: ``f4`` to ``f1`` fell, ``r1`` to ``r4`` rose, ``r0`` stayed.

    Example:
        >>> [mark(change) for change in (-5.0, -0.1, 0.01, 0.3)]
        ['f4', 'f1', 'r0', 'r2']
    """
    strength = bisect_right(CHANGES, abs(change))
    return f"{'f' if change < 0 and strength else 'r'}{strength}"


def shade_labels() -> list[tuple[str, str]]:
    """Class and meaning of every shade, for the legend."""
    percent = [f"{100 * p:.0f}" for p in PROBABILITIES]
    between = [f"{low} to {high} %" for high, low in pairwise(percent)]
    texts = [f"{percent[0]} % or more", *between, f"under {percent[-1]} %"]
    return [(f"s{level}", text) for level, text in enumerate(texts)]


def change_labels() -> list[tuple[str, str]]:
    """Class and meaning of every mark, from the strongest fall to the strongest rise."""
    known = [f"{change:g}" for change in CHANGES]
    sizes = [*(f"{a} to {b}" for a, b in pairwise(known)), f"{known[-1]} or more"]
    falls = [(f"f{i}", f"fell {size}") for i, size in enumerate(sizes, start=1)]
    rises = [(f"r{i}", f"rose {size}") for i, size in enumerate(sizes, start=1)]
    return [*reversed(falls), ("r0", f"moved under {known[0]}"), *rises]


def visible(text: str) -> str:
    """A token's text such that it can be seen: a line break has a sign of its own, and so has nothing at all.

    Example:
        >>> visible("a\\n"), visible(" "), visible("")
        ('a↵\\n', '␣', '∅')
    """
    if not text:
        return "∅"
    return "␣" * len(text) if not text.strip(" ") else text.replace("\n", "↵\n")


MOST_ITEMS = 60
"""Pictures shown at most; the notes of the page say how many more there are."""

_MOST_BYTES = 40_000
_SIDE = 320
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow raises it for a broken PNG chunk
    EOFError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


class Answer(NamedTuple):
    """What one model answered; right is None where nobody judged it."""

    name: str
    text: str
    right: bool | None


@dataclass(frozen=True)
class Item:
    """One picture (a ``data:`` URI, or None where it cannot be shown), its prompt, the right answer, the answers.

    A ``small`` picture is drawn larger than it is: its pixels are kept sharp.
    """

    image: str | None
    small: bool
    prompt: str
    chosen: str
    answers: Sequence[Answer]


def read_gallery(directory: Path, summary: Mapping[str, Any], notes: list[str]) -> list[Item]:
    """The ``gallery`` of a ``summary.json``. Image paths resolve against ``directory`` and may not leave it."""
    entries = objects(summary, "gallery")
    if len(entries) > MOST_ITEMS:
        notes.append(
            f"{directory.name}: {len(entries) - MOST_ITEMS} more pictures are in summary.json than are shown here."
        )
    return [_item(directory, entry, notes) for entry in entries[:MOST_ITEMS]]


def _item(directory: Path, entry: Mapping[str, Any], notes: list[str]) -> Item:
    picture, name = None, entry.get("image")
    if name is not None:
        picture = read_picture(str(name), notes, f"{directory.name}: the picture {name!r}", inside=directory)
    uri, small = picture or (None, False)
    answers = []
    for answer in objects(entry, "answers"):
        right = answer.get("right")
        name, text = str(answer.get("name", "?")), str(answer.get("text", ""))
        answers.append(Answer(name, text, right if isinstance(right, bool) else None))
    return Item(uri, small, str(entry.get("prompt") or ""), str(entry.get("chosen") or ""), answers)


def read_picture(
    source: Path | str | bytes, notes: list[str], name: str, *, inside: Path | None = None
) -> tuple[str, bool] | None:
    """A picture as a ``data:`` URI (a thumbnail where it is large), and whether it has few pixels.

    None where it cannot be shown: ``notes`` say so of ``name``. Paths start in ``inside``, if given, and stay there.
    """
    try:
        if inside is not None and not isinstance(source, bytes):
            source = (inside / source).resolve()
            if not source.is_relative_to(inside.resolve()):
                raise ValueError("its path leaves the run directory")
            if not source.is_file():
                raise ValueError("there is no such file")
        return _read(source if isinstance(source, bytes) else read_object(Path(source)))
    except UnidentifiedImageError:
        notes.append(f"{name} is not a {', '.join(_TYPES)} file.")
    except _UNREADABLE as error:
        notes.append(f"{name} cannot be shown: {error}.")
    return None


def _read(content: bytes) -> tuple[str, bool]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=list(_TYPES)) as picture:
            kind, small = str(picture.format), max(picture.size) <= _SIDE // 2
            if len(content) <= _MOST_BYTES and max(picture.size) <= 2 * _SIDE:
                picture.load()
            else:
                picture.thumbnail((_SIDE, _SIDE))
                buffer = io.BytesIO()
                picture.convert("RGB").save(buffer, "JPEG", quality=85)
                kind, content = "JPEG", buffer.getvalue()
    return f"data:{_TYPES[kind]};base64,{base64.b64encode(content).decode()}", small


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
    """One answer to a row's prompt, without tokens where it was not measured token by token."""

    group: str
    label: str
    text: str
    tokens: Sequence[Token]
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
    """The examples of one stage of one run, whether it is the last of the run's stages that have any, and how many rows
    were probed where that is more; else None."""

    rank: int
    name: str
    stage: str
    is_last: bool
    examples: Sequence[Example]
    probed: int | None


def example_sets(runs: Sequence[Run], notes: list[str]) -> list[ExampleSet]:
    """The ``probes/STAGE/examples.jsonl`` of every run; ``notes`` name what cannot be shown."""
    found = []
    for rank, run in enumerate(runs):
        filled = {stage: examples for stage in run.stages if (examples := _read_stage(run, stage, notes))}
        for stage, examples in filled.items():
            probed = run.num_probed if run.num_probed > len(examples) else None
            found.append(ExampleSet(rank, run.name, stage_label(stage), stage == list(filled)[-1], examples, probed))
    return found


def example_files(root: Path) -> list[Path]:
    """Where the examples of a run may be, for readers that follow the run."""
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
    answers = _in_order([_answer(entry, f"{where}, row {row}", notes) for entry in objects(line, "answers")])
    pictures = line.get("pictures")
    names = [str(name) for name in pictures] if isinstance(pictures, list) else []
    if len(names) > _MOST_PICTURES:
        notes.append(f"{where}, row {row}: the first {_MOST_PICTURES} of {len(names)} pictures are shown.")
    found = [
        read_picture(name, notes, f"{where}, row {row}: the picture {name!r}", inside=directory)
        for name in names[:_MOST_PICTURES]
    ]
    shown = [picture for picture in found if picture is not None]
    return Example(row, shown, str(line.get("prompt") or ""), answers)


def _answer(entry: Mapping[str, Any], where: str, notes: list[str]) -> ExampleAnswer:
    group, text = str(entry.get("group", "?")), str(entry.get("text") or "")
    tokens = read_tokens(entry)
    if tokens is None:
        notes.append(f"{where}: the tokens of {group!r} and their log-probs do not fit together and were left out.")
    end = fmean(token.end for token in tokens) if tokens else None
    known = [token.change for token in tokens or () if token.change is not None]
    change = fmean(known) if known else None
    return ExampleAnswer(group, _LABELS.get(group, group_title(group)), text, tokens or (), end, change)


def _in_order(answers: Sequence[ExampleAnswer]) -> list[ExampleAnswer]:
    """In the order of the labels; where the model's answer is the same before and after, it is shown once."""
    texts = {answer.group: answer.text for answer in answers}
    if "greedy" in texts and texts["greedy"] == texts.get("greedy_end"):
        kept = [answer for answer in answers if answer.group != "greedy_end"]
        answers = [replace(answer, label=_ALIKE) if answer.group == "greedy" else answer for answer in kept]
    order = list(_LABELS)
    return sorted(answers, key=lambda answer: order.index(answer.group) if answer.group in order else len(order))
