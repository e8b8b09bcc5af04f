"""Where histories come from: run directories, TRL's ``trainer_state.json``, and any file of JSON lines."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cwdpo.errors import DataError
from cwdpo.records.files import read_jsonl
from cwdpo.records.run_directory import RunDirectory

_STATE = "trainer_state.json"


@dataclass
class Recording:
    """A history as it was read."""

    readings: list[Any]
    """Lines of metrics, then of probes."""

    beta: float | None = None
    """Of the preference loss, where the source tells it."""

    run: RunDirectory | None = None
    """The run directory that ``findings.json`` belongs in, if it is one."""

    notes: list[str] = field(default_factory=list)
    """What was skipped."""


def read_recording(path: Path) -> Recording:
    """Read a run directory, a ``trainer_state.json`` (or a directory that holds checkpoints), or a file of JSON lines.

    Raises:
        DataError: it is none of these, or holds nothing that can be read.
    """
    if path.is_dir():
        recording = _read_directory(path)
    elif not path.exists():
        raise DataError(f"{path} does not exist. Give a run directory, a {_STATE} or a file of JSON lines.")
    elif path.suffix == ".json" and not _is_lines(path):
        recording = _read_state(path)
    else:
        recording = Recording([])
        recording.readings = _read_lines(path, recording.notes)
    if not recording.readings:
        raise DataError(f"{path} holds no reading yet. Give a run that has logged at least one step.")
    return recording


def _read_directory(path: Path) -> Recording:
    run = RunDirectory(path)
    if not run.metrics.is_file() and not run.probes.is_file():
        state = _newest_state(path)
        if state is not None:
            return _read_state(state)
        runs = [child.name for child in sorted(path.iterdir()) if RunDirectory(child).metrics.is_file()]
        holds = f"It holds the runs {', '.join(runs)}: give one of them." if runs else "Give the output_dir of a run."
        raise DataError(f"{path} is no run: neither metrics.jsonl, probes.jsonl nor {_STATE} is in it. {holds}")
    recording = Recording([], run=run)
    recording.readings = [*_read_lines(run.metrics, recording.notes), *_read_lines(run.probes, recording.notes)]
    recording.beta = _beta_of(run.recipe, recording.notes)
    return recording


def _newest_state(path: Path) -> Path | None:
    """The directory's own state, else that of its newest checkpoint, where the Trainer keeps it."""
    if (path / _STATE).is_file():
        return path / _STATE
    states = {
        int(number): state
        for state in path.glob(f"checkpoint-*/{_STATE}")
        if (number := state.parent.name.removeprefix("checkpoint-")).isdecimal()
    }
    return states[max(states)] if states else None


def _is_lines(path: Path) -> bool:
    """Whether a file holds several JSON objects, one a line, whatever its name ends in."""
    with path.open("rb") as file:
        first, second = file.readline().strip(), file.readline().strip()
    return first.endswith(b"}") and second.startswith(b"{")


def _read_lines(path: Path, notes: list[str]) -> list[Any]:
    lines = read_jsonl(path)
    if lines.skipped:
        some = "1 line" if lines.skipped == 1 else f"{lines.skipped} lines"
        notes.append(f"{path.name}: {some} could not be read (half-written or damaged), and were left out.")
    return list(lines.objects)


def _read_state(path: Path) -> Recording:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}). Give the {_STATE} that a Trainer wrote.") from error
    history = content.get("log_history") if isinstance(content, dict) else content
    if not isinstance(history, list):
        raise DataError(f"{path} has no list `log_history`. Give the {_STATE} that a Trainer wrote.")
    return Recording(history)


def _beta_of(recipe: Path, notes: list[str]) -> float | None:
    """beta of a run's recipe. Only that is looked at: a recipe of another version must not stop a diagnosis."""
    if not recipe.is_file():
        return None
    try:
        content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        beta = float(content["stage2"]["beta"])
    except (KeyError, TypeError):
        return None  # a run without stage 2
    except (ValueError, yaml.YAMLError):
        notes.append(f"{recipe.name} could not be read.")
        return None
    if not 0 < beta < math.inf:
        notes.append(f"{recipe.name} has stage2.beta {beta}, which is no inverse temperature: it was not used.")
        return None
    return beta
