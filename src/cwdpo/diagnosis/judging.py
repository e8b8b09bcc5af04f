"""Look for every sign in every stage."""

from collections.abc import Iterable
from typing import Any

from cwdpo.diagnosis.finding import Diagnosis, Finding, MissingReadingsError, NotJudged
from cwdpo.diagnosis.history import DEFAULT_BETA, History, StageHistory
from cwdpo.diagnosis.signs import SIGNS
from cwdpo.diagnosis.thresholds import Thresholds


def diagnose(
    readings: Iterable[Any], *, beta: float | None = None, thresholds: Thresholds | None = None
) -> list[Finding]:
    """Name what went wrong in a run, from its readings alone.

    Args:
        readings: lines of ``metrics.jsonl`` and ``probes.jsonl`` in any mixture, or the ``log_history`` of TRL; those
            of one stage oldest first. An item that is no reading is left out; :func:`examine` counts them.
        beta: of the preference loss; None takes 0.1.
        thresholds: None takes the defaults.

    Returns:
        Most harmful first; empty where nothing was found, or nothing could be judged: :func:`examine` tells which.

    Example:
        >>> fall = [{"stage": "stage2", "step": s, "group": "chosen", "delta": -s / 100} for s in (0, 50, 100)]
        >>> free = [{"stage": "stage2", "step": s, "group": "rejected", "delta": -s / 10} for s in (0, 50, 100)]
        >>> [finding.name for finding in diagnose(fall + free)][:2]
        ['squeezing', 'likelihood_displacement']
    """
    return list(examine(readings, beta=beta, thresholds=thresholds).findings)


def examine(
    readings: Iterable[Any],
    *,
    beta: float | None = None,
    thresholds: Thresholds | None = None,
    notes: Iterable[str] = (),
) -> Diagnosis:
    """The same, with what was looked at and what could not be judged; ``notes`` go before its own."""
    history = History.of(readings, beta=beta, limits=thresholds)
    found: list[tuple[int, Finding]] = []
    judged: dict[str, bool] = {}
    missing: list[NotJudged] = []
    for stage in history.stages:
        for rank, sign in enumerate(SIGNS):
            if sign.needs_preferences and not stage.prefers:
                continue
            try:
                finding = sign.judge(stage)
            except MissingReadingsError as error:
                missing.append(NotJudged(sign.name, stage.name, str(error)))
                continue
            judged[sign.name] = judged.get(sign.name, False) or finding is not None
            if finding is not None:
                found.append((rank, finding))
    return Diagnosis(
        findings=[finding for _, finding in sorted(found, key=lambda pair: pair[0])],
        looked_at=[_looked_at(stage) for stage in history.stages],
        clear=[sign.name for sign in SIGNS if judged.get(sign.name) is False],
        not_judged=missing,
        notes=[*notes, *_notes(history, beta)],
    )


def _looked_at(stage: StageHistory) -> str:
    kind = "preferences" if stage.prefers else "supervised"
    steps = f"steps {stage.first_step} to {stage.last_step}" if stage.has_steps else "no steps told"
    return f"{stage.name} ({kind}): {stage.num_metrics} metric lines, {stage.num_probes} probe lines, {steps}"


def _notes(history: History, beta: float | None) -> list[str]:
    notes = []
    if history.num_unreadable:
        notes.append(f"{history.num_unreadable} of the readings hold nothing that diagnosis knows, and were left out.")
    if beta is None and any(stage.prefers and stage.num_metrics for stage in history.stages):
        notes.append(f"beta is not told, and was taken to be {DEFAULT_BETA}; rewards are divided by it.")
    return notes
