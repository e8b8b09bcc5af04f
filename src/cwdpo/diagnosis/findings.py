"""What a diagnosis says: findings, what is clear, and what could not be judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cwdpo.records import SignName


@dataclass(frozen=True)
class Finding:
    """One named problem, the numbers that show it, and what to change."""

    name: SignName
    """``docs/diagnosis.md`` explains each."""

    evidence: str
    """Where and when, and the numbers with their units."""

    advice: str
    """What to change, by the names of the recipe."""

    stage: str | None = None
    step: int | None = None
    """Last step that was looked at, or the step at which it happened."""


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

    def to_json(self) -> dict[str, Any]:
        """The content of ``findings.json``."""
        return {
            "findings": [vars(finding) for finding in self.findings],
            "looked_at": list(self.looked_at),
            "clear": list(self.clear),
            "not_judged": [vars(missing) for missing in self.not_judged],
            "notes": list(self.notes),
        }

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
    """Words of a sign's name.

    Example:
        >>> title_of("easy_negative_saturation")
        'Easy negative saturation'
    """
    return name.replace("_", " ").capitalize()
