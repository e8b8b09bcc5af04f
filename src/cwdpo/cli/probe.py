"""``cwdpo probe``: measure a probe set on any checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cwdpo.cli.options import ImageRootOption
from cwdpo.cli.quiet import quiet_libraries
from cwdpo.records import ProbeLine, ProbeMeasure

_COLUMNS: tuple[ProbeMeasure, ...] = ("mean_logprob", "p10", "p50", "p90", "delta")
_OF_CHOSEN: tuple[ProbeMeasure, ...] = ("entropy", "top1", "argmax_mass", "ece", "tv", "js", "moved_to_argmax")


def probe(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_RUN", help="A checkpoint, a run, or a hub name.", show_default=False)
    ],
    data: Annotated[Path, typer.Option("--data", help="A file or directory of rows.", show_default=False)],
    reference: Annotated[
        str | None, typer.Option("--reference", help="Compare with this checkpoint, run or hub name.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Rows to ask about.  [default: 32, or all there are]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the sample of rows, and of what is made of them.")] = 0,
    image_root: ImageRootOption = None,
    greedy: Annotated[bool, typer.Option("--greedy/--no-greedy", help="Ask about the model's own answers too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Ask a model about many answers to each prompt: right, wrong, shuffled, under another image or none.

    With --reference also what changed since: for each group, and for the predictions of the right answers.
    """
    from cwdpo.models.naming import find_checkpoint

    names = [find_checkpoint(name) for name in (reference, model) if name]
    quiet_libraries()
    from cwdpo.diagnosis import words_of_reading
    from cwdpo.evaluation.likelihood import probe_checkpoints

    lines = probe_checkpoints(
        names[-1],
        data,
        reference=names[0] if reference else None,
        num_rows=rows,
        seed=seed,
        image_root=image_root,
        with_own_answers=greedy,
    )
    words = words_of_reading(lines)
    if as_json:
        asked = {"model": model, "reference": reference, "data": str(data)}
        print(json.dumps({**asked, "groups": lines, "words": words}))
    else:
        _show(lines, words, Console())


def _show(lines: Sequence[ProbeLine], words: Sequence[str], console: Console) -> None:
    shown = [name for name in _COLUMNS if name in lines[0]]
    table = Table("group", "n", *shown, caption="Mean log-probs of answers, nats per token.", caption_justify="left")
    for line in lines:
        table.add_row(line["group"], str(line["n"]), *(f"{line[name]:.4f}" for name in shown))
    console.print(table)
    facts = [f"{name} {lines[0][name]:.4f}" for name in _OF_CHOSEN if name in lines[0]]
    console.print("Tokens of chosen answers: " + ", ".join(facts), soft_wrap=True, highlight=False)
    console.print()
    for sentence in words:
        console.print(Text(f"- {sentence}"), soft_wrap=True)
