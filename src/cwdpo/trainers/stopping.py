"""When findings end a stage: the same one, in several readings in a row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cwdpo.diagnosis import Finding, Thresholds, diagnose


class StoppingRule:
    """Asks the diagnosis after every reading whether something that must not go on has gone on for too long."""

    def __init__(self, stop_on: Sequence[str], *, patience: int, tolerance: float) -> None:
        """Set up.

        Args:
            stop_on: names of findings; none never stops.
            patience: readings in a row that must show the same finding.
            tolerance: nats per token; a smaller fall of the chosen answers is no finding.
        """
        self._stop_on, self._patience = tuple(stop_on), patience
        self._thresholds = Thresholds(fall_least=tolerance, fall_most=max(tolerance, Thresholds().fall_most))
        self._in_a_row: Counter[str] = Counter()
        self.reason: dict[str, Any] | None = None
        """What ended the stage: ``finding``, ``stage``, ``step``, ``readings`` in a row, ``evidence``, ``advice``."""

    def update(self, history: Sequence[Mapping[str, Any]], *, beta: float | None) -> dict[str, Any] | None:
        """Take in the history up to a new reading; the reason if the stage must end.

        Args:
            history: lines of metrics and probes of this stage, oldest first.
            beta: of the preference loss, if it has one.
        """
        if not self._stop_on:
            return None
        found: dict[str, Finding] = {}
        for finding in diagnose(history, beta=beta, thresholds=self._thresholds):
            found.setdefault(finding.name, finding)
        self._in_a_row = Counter({name: self._in_a_row[name] + 1 for name in self._stop_on if name in found})
        for name, count in self._in_a_row.items():
            if count >= self._patience:
                finding = found[name]
                self.reason = {
                    "finding": name,
                    "stage": finding.stage,
                    "step": max(line["step"] for line in history if "group" in line),
                    "readings": count,
                    "evidence": finding.evidence,
                    "advice": finding.advice,
                }
                return self.reason
        return None

    def recall(self, history: Sequence[Mapping[str, Any]], *, beta: float | None) -> None:
        """Count again what an interrupted run had counted, from its readings."""
        steps = sorted({line["step"] for line in history if "group" in line and line["step"] > 0})
        for step in steps[-self._patience :]:
            # a step's own metrics are logged after its reading
            self.update([line for line in history if line["step"] < step + ("group" in line)], beta=beta)
        self.reason = None

    def told(self) -> str:
        """The reason in words."""
        assert self.reason is not None
        times = "reading" if self.reason["readings"] == 1 else "readings in a row"
        finding = self.reason["finding"].replace("_", " ")
        return f"{finding} in {self.reason['readings']} {times}. {self.reason['evidence']} {self.reason['advice']}"
