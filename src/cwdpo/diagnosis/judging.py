"""Look for every sign in every stage of a history, and read the histories that runs and other trainers leave."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cwdpo.config.recipe import Stage2Config
from cwdpo.contents import READINGS, kind_of, refusal
from cwdpo.diagnosis.curves import MissingReadingsError
from cwdpo.diagnosis.history import Finding, StageHistory, stage_histories
from cwdpo.diagnosis.signs import SIGNS
from cwdpo.diagnosis.thresholds import Thresholds
from cwdpo.errors import DataError
from cwdpo.records import LONGEST_LINE, RunDirectory, SignName, read_jsonl, read_object

_STATE = "trainer_state.json"


@dataclass(frozen=True)
class NotJudged:
    """A sign that could not be looked for, and the readings it needs."""

    name: SignName
    stage: str
    needs: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that one look at a history gives."""

    findings: Sequence[Finding]
    """Most harmful first."""

    looked_at: Sequence[str]
    """A line a stage: how many readings, from which step to which."""

    clear: Sequence[SignName]
    """Signs that were looked for in at least one stage, and found in none."""

    not_judged: Sequence[NotJudged]
    notes: Sequence[str]
    """What was skipped, and what was assumed."""

    def missing(self) -> list[tuple[SignName, Sequence[str], str]]:
        """What could not be judged, each once: the sign, the stages, and the readings it needs."""
        stages: dict[tuple[SignName, str], list[str]] = {}
        for one in self.not_judged:
            stages.setdefault((one.name, one.needs), []).append(one.stage)
        return [(name, where, needs) for (name, needs), where in stages.items()]

    @property
    def found_nothing(self) -> bool:
        """Whether nothing is known to be wrong, and most signs were judged wherever they apply: else it is no comfort
        that nothing was found."""
        return not self.findings and len(self._judged_everywhere) >= max(1, len(self._unjudged))

    @property
    def headline(self) -> str:
        """The result in a line: the names of what was found, or how much was looked for."""
        if self.findings:  # a sign may be found in both stages
            first, *more = dict.fromkeys(title_of(finding.name) for finding in self.findings)
            return ", ".join([first, *(name.lower() for name in more)])
        signs, unjudged = len(self._judged_everywhere), len(self._unjudged)
        if self.found_nothing:
            rest = f"; {unjudged} more could not be judged in every stage" if unjudged else ""
            return f"No problem found: {signs} sign{'' if signs == 1 else 's'} looked for{rest}"
        if not self.clear:
            return "Nothing could be judged: too few readings"
        return (
            f"Too few readings to say much: {unjudged} of {signs + unjudged} signs could not be judged in every stage"
        )

    @property
    def _unjudged(self) -> set[SignName]:
        return {one.name for one in self.not_judged}

    @property
    def _judged_everywhere(self) -> set[SignName]:
        return {*self.clear} - self._unjudged

    def to_json(self) -> dict[str, Any]:
        """The content of ``findings.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> "Diagnosis | None":
        """The diagnosis that :meth:`to_json` gave; None where this is not a whole one."""
        if not isinstance(content, Mapping):
            return None
        try:
            return cls(
                findings=[Finding(**entry) for entry in content["findings"]],
                looked_at=[str(line) for line in content["looked_at"]],
                clear=list(content["clear"]),
                not_judged=[NotJudged(**entry) for entry in content["not_judged"]],
                notes=[str(note) for note in content["notes"]],
            )
        except (KeyError, TypeError):
            return None


def title_of(name: str) -> str:
    """Words of a sign's name: ``Easy negative saturation``."""
    return name.replace("_", " ").capitalize()


def diagnose(
    readings: Iterable[object], *, beta: float | None = None, thresholds: Thresholds | None = None
) -> list[Finding]:
    """Name what went wrong in a run, from its readings alone.

    Args:
        readings: lines of ``metrics.jsonl`` and ``probes.jsonl`` in any mixture, or the ``log_history`` of TRL; those
            of one stage oldest first. An item that is not a reading is left out; :func:`examine` counts them.
        beta: of the preference loss; None takes the recipe's default.
        thresholds: None takes the defaults.

    Returns:
        Most harmful first; empty where nothing was found, or nothing could be judged: :func:`examine` says which.

    Example:
        >>> fall = [{"stage": "stage2", "step": s, "group": "chosen", "delta": -s / 100} for s in (0, 50, 100)]
        >>> free = [{"stage": "stage2", "step": s, "group": "rejected", "delta": -s / 10} for s in (0, 50, 100)]
        >>> [finding.name for finding in diagnose(fall + free)][:2]
        ['squeezing', 'likelihood_displacement']
    """
    return list(examine(readings, beta=beta, thresholds=thresholds).findings)


def examine(
    readings: Iterable[object],
    *,
    beta: float | None = None,
    thresholds: Thresholds | None = None,
    notes: Iterable[str] = (),
) -> Diagnosis:
    """The same, with what was looked at and what could not be judged; ``notes`` go before its own."""
    stages, num_unreadable = stage_histories(readings, beta=beta, limits=thresholds)
    judged: dict[SignName, list[Finding | None]] = {sign.name: [] for sign in SIGNS}
    missing: list[NotJudged] = []
    for stage, sign in itertools.product(stages, SIGNS):
        if sign.needs_preferences and not stage.prefers:
            continue
        try:
            judged[sign.name].append(sign.judge(stage))
        except MissingReadingsError as error:
            missing.append(NotJudged(sign.name, stage.name, str(error)))
    own = []
    if num_unreadable:
        own.append(f"{num_unreadable} of the readings hold nothing that diagnosis knows, and were left out.")
    if beta is None and any(stage.prefers and stage.num_metrics for stage in stages):
        own.append(f"beta is not given, and was taken to be {Stage2Config.beta}; rewards are divided by it.")
    return Diagnosis(
        findings=[finding for found in judged.values() for finding in found if finding is not None],
        looked_at=[_looked_at(stage) for stage in stages],
        clear=[name for name, found in judged.items() if found and not any(found)],
        not_judged=missing,
        notes=[*notes, *own],
    )


def _looked_at(stage: StageHistory) -> str:
    kind = "preferences" if stage.prefers else "supervised"
    steps = f"steps {stage.first_step} to {stage.last_step}" if stage.has_steps else "lines without a step"
    return f"{stage.name} ({kind}): {stage.num_metrics} metric lines, {stage.num_probes} probe lines, {steps}"


@dataclass
class Recording:
    """A history as it was read: lines of metrics, then of probes."""

    readings: Sequence[object]
    beta: float | None = None
    """Of the preference loss, where the source has it."""

    run: RunDirectory | None = None
    """The run directory that ``findings.json`` belongs in, if it is one."""

    notes: list[str] = field(default_factory=list)
    """What was skipped."""


def read_recording(path: Path) -> Recording:
    """Read a run directory, a ``trainer_state.json`` (or a directory that holds checkpoints), or a file of JSON lines;
    a DataError says that it is none of these, or holds nothing that can be read."""
    notes: list[str] = []
    if path.is_dir():
        recording = _read_directory(path, notes)
    elif not path.exists() or not _may_hold_readings(path):
        raise refusal(path, READINGS, DataError)
    elif path.suffix in (".csv", ".tsv", ".parquet"):
        raise DataError(f"{path}: a {path.suffix} file is not read here. {READINGS.write}")
    elif path.suffix == ".json" and not _is_lines(path):
        recording = _read_state(path)
    else:
        recording = Recording(_read_lines(path, notes), notes=notes)
    if not recording.readings and notes and path.is_file():
        raise DataError(f"{path}:1: not a JSON object, nor is another line. {READINGS.write}")
    if not recording.readings:
        raise DataError(f"{path} holds no reading yet. Give a run that has logged at least one step.")
    return recording


def _may_hold_readings(file: Path) -> bool:
    return file.suffix == ".json" or kind_of(file) in ("a file", "a file of rows", "a file of a run")


def _read_directory(path: Path, notes: list[str]) -> Recording:
    run = RunDirectory(path)
    if not run.metrics.is_file() and not run.probes.is_file():
        state = _newest_state(path)
        if state is not None:
            return _read_state(state)
        if kind_of(path) not in ("a run", "an unfinished run"):
            raise refusal(path, READINGS, DataError)
    readings = [*_read_lines(run.metrics, notes), *_read_lines(run.probes, notes)]
    return Recording(readings, _beta_of(run.recipe, notes), run, notes)


def _newest_state(path: Path) -> Path | None:
    """The directory's own state, else that of its newest checkpoint."""
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
        first, second = file.readline(LONGEST_LINE).strip(), file.readline(LONGEST_LINE).strip()
    return first.endswith(b"}") and second.startswith(b"{")


def _read_lines(path: Path, notes: list[str]) -> Sequence[object]:
    lines = read_jsonl(path)
    if lines.skipped:
        some = "1 line" if lines.skipped == 1 else f"{lines.skipped} lines"
        notes.append(f"{path.name}: {some} could not be read (half-written or damaged), and were left out.")
    return lines.objects


def _read_state(path: Path) -> Recording:
    try:
        content = json.loads(read_object(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not readable JSON ({error}). Give the {_STATE} that a Trainer wrote.") from error
    history = content.get("log_history") if isinstance(content, dict) else content
    if not isinstance(history, list):
        raise DataError(f"{path} has no list `log_history`. Give the {_STATE} that a Trainer wrote.")
    return Recording(history)


class _WithoutMerging(yaml.SafeLoader):
    """Keeps ``<<`` as a key: a few lines of it can stand for more keys than any memory holds."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def _beta_of(recipe: Path, notes: list[str]) -> float | None:
    """beta of a run's recipe. Only that is looked at: a recipe of another version must not stop a diagnosis."""
    if not recipe.is_file():
        return None
    try:
        content = yaml.load(read_object(recipe).decode("utf-8"), _WithoutMerging)
        beta = float(content["stage2"]["beta"])
    except (KeyError, TypeError):
        return None  # a run without stage 2
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError):
        notes.append(f"{recipe.name} could not be read.")
        return None
    if not 0 < beta < math.inf:
        notes.append(f"{recipe.name} has stage2.beta {beta}, which is not an inverse temperature: it was not used.")
        return None
    return beta
