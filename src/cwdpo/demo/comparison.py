"""The demo's result: one table of methods, and pictures with what each model says of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.demo.checker import check_caption
from cwdpo.demo.measure import Captions, HeldOut
from cwdpo.demo.world import PROMPT

COLUMNS: tuple[dict[str, str], ...] = (
    {"key": "exact", "label": "exact", "better": "up", "format": ".1%"},
    {"key": "exact_sampled", "label": "exact, sampled", "better": "up", "format": ".1%"},
    {"key": "hallucination", "label": "hallucination", "better": "down", "format": ".1%"},
    {"key": "win", "label": "win rate", "better": "up", "format": ".1%"},
    {"key": "win_sampled", "label": "win, sampled", "better": "up", "format": ".1%"},
    {"key": "chosen_delta", "label": "chosen Delta", "better": "up", "format": "+.2f"},
    {"key": "rejected_delta", "label": "rejected Delta", "format": "+.2f"},
    {"key": "ece", "label": "ECE", "better": "down", "format": ".3f"},
    {"key": "tv", "label": "TV", "better": "down", "format": ".3f"},
    {"key": "steps", "label": "steps", "format": "d"},
)
"""What is measured, in the form that the report reads."""

LEGEND = (
    "exact: captions with every attribute right; hallucination: captions that name a thing that is not there; "
    "win rate: against plain SFT after stage 1, ties half; Delta: log pi - log pi_ref of held-out captions, nats; "
    "ECE: token calibration error; TV: total variation to the model before the second phase. "
    "One seed: differences of a point or two are chance."
)
"""What the columns mean, in one line."""


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as text; a value that a row lacks is a dash.

    Args:
        rows: a ``name`` and the keys of :data:`COLUMNS`.
    """
    lines = [["", *(column["label"] for column in COLUMNS)]]
    for row in rows:
        cells = (format(row[c["key"]], c["format"]) if row.get(c["key"]) is not None else "-" for c in COLUMNS)
        lines.append([str(row["name"]), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def make_gallery(
    captions: Mapping[str, Captions], held_out: HeldOut, *, images: str, count: int
) -> list[dict[str, Any]]:
    """Pictures with the greedy captions of every model: first those on which the models differ most.

    Args:
        captions: of each model, by its name in the table.
        held_out: the rows that were captioned.
        images: directory of the pictures, relative to the file that the gallery is written into.
        count: how many pictures.
    """
    entries = []
    for index, (row, scene) in enumerate(zip(held_out.rows, held_out.scenes, strict=True)):
        answers = [
            {"name": name, "text": text, "right": check_caption(text, scene).exact}
            for name, text in ((name, texts.greedy[index]) for name, texts in captions.items())
        ]
        entries.append({"image": f"{images}/{row.id}.png", "prompt": PROMPT, "chosen": row.chosen, "answers": answers})
    return sorted(entries, key=_agreement)[:count]


def _agreement(entry: Mapping[str, Any]) -> int:
    right: int = sum(answer["right"] for answer in entry["answers"])
    return abs(2 * right - len(entry["answers"]))
