"""What a diagnosis says: named problems, and just as plainly what it could not judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One named problem, the numbers that show it, and what to change."""

    name: str
    """``squeezing``, ``likelihood_displacement``, ...; the names that ``docs/diagnosis.md`` explains."""

    evidence: str
    """Where and when, and the numbers with their units."""

    advice: str
    """What to change, by the names of the recipe."""

    stage: str | None = None
    step: int | None = None
    """Last step that was looked at, or the step at which it happened."""


@dataclass(frozen=True)
class NotJudged:
    """A sign that could not be looked for, and the readings it wanted."""

    name: str
    stage: str
    needs: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that one look at a history gives."""

    findings: Sequence[Finding]
    """Most harmful first."""

    looked_at: Sequence[str]
    """A line a stage: how many readings, from which step to which."""

    clear: Sequence[str]
    """Names of the signs that were looked for in at least one stage, and found in none."""

    not_judged: Sequence[NotJudged]
    notes: Sequence[str]
    """What was skipped, and what was taken for granted."""

    def missing(self) -> list[tuple[str, Sequence[str], str]]:
        """What could not be judged, each told once: the sign, the stages, and the readings it wanted."""
        stages: dict[tuple[str, str], list[str]] = {}
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


def title_of(name: str) -> str:
    """Words of a sign's name.

    Example:
        >>> title_of("easy_negative_saturation")
        'Easy negative saturation'
    """
    return name.replace("_", " ").capitalize()


class MissingReadingsError(Exception):
    """A sign cannot be judged; the message names the readings it lacks. Never leaves this package."""
