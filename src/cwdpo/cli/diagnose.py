"""``cwdpo diagnose``: what went wrong in a run, by name, with evidence and advice."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from cwdpo.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from cwdpo.diagnosis import Diagnosis


def diagnose(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run directory, a trainer_state.json or a JSONL file of logs.", show_default=False
        ),
    ],
    beta: Annotated[
        float | None, typer.Option("--beta", help="Of the preference loss.  [default: the run's recipe, else 0.1]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")] = False,
) -> None:
    """Name what went wrong in a run, from its readings alone, and write findings.json into it.

    Reads histories of other trainers too. Needs no GPU, no model and no torch.
    """
    from cwdpo.diagnosis import examine, read_recording

    if beta is not None and not 0 < beta < float("inf"):
        raise ConfigError(f"--beta is {beta}, but must be > 0. Write the beta that the run was trained with.")
    recording = read_recording(source)
    diagnosis = examine(recording.readings, beta=recording.beta if beta is None else beta, notes=recording.notes)
    if not diagnosis.looked_at:
        raise DataError(
            f"{source}: no line holds a reading that diagnosis knows. It looks for `loss`, `grad_norm`, "
            "`logps/chosen`, `logps/rejected`, `rewards/*` and the like, or for probe lines with a `group`."
        )
    if as_json:
        print(json.dumps(diagnosis.to_json(), ensure_ascii=False))
    else:
        _show(diagnosis, Console())
    if recording.run is not None:
        recording.run.write_findings(diagnosis.to_json())


def _show(diagnosis: "Diagnosis", console: Console) -> None:
    from cwdpo.diagnosis import title_of

    for line in diagnosis.looked_at:
        console.print(Text(printable(line), style="dim"), soft_wrap=True)
    for finding in diagnosis.findings:
        console.print()
        console.print(Text(title_of(finding.name), style="bold red"))
        console.print(Text(printable(f"  {finding.evidence}")), soft_wrap=True)
        console.print(Text(f"  {finding.advice}"), soft_wrap=True)
    console.print()
    if not diagnosis.findings:
        console.print(
            Text(f"{diagnosis.headline}.", style="bold green" if diagnosis.found_nothing else "bold"), soft_wrap=True
        )
    if diagnosis.clear:
        clear = ", ".join(title_of(name).lower() for name in diagnosis.clear)
        console.print(Text(f"Looked for and not found: {clear}."), soft_wrap=True)
    if diagnosis.not_judged:
        console.print(Text("Could not be judged, as readings are missing:"))
        for name, where, needs in diagnosis.missing():
            console.print(Text(f"  {title_of(name).lower()} ({', '.join(where)}): {needs}"), soft_wrap=True)
    for note in diagnosis.notes:
        console.print(Text(printable(f"Note: {note}"), style="yellow"), soft_wrap=True)
