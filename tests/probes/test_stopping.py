"""The stopping rule on readings that collapse, with the real diagnosis."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cwdpo.diagnosis import Finding
from cwdpo.probes.callback import StoppingRule


def history(steps: int, fall: float) -> list[dict[str, Any]]:
    """Probe lines whose chosen answers lose ``fall`` nats per token a reading, and rejected ones a hundred times."""
    found: list[dict[str, Any]] = []
    for reading in range(steps + 1):
        for group, start, change in (("chosen", -0.5, fall), ("rejected", -4.0, 100 * fall)):
            found.append(
                {
                    "stage": "stage2",
                    "step": 10 * reading,
                    "group": group,
                    "n": 32,
                    "mean_logprob": start - reading * change,
                    "delta": -reading * change,
                }
            )
    return found


def stops_at(
    fall: float, *, stop_on: tuple[str, ...] = ("squeezing", "likelihood_displacement"), **rule: Any
) -> int | None:
    stopping = StoppingRule(stop_on, **{"patience": 2, "tolerance": 0.02, **rule})
    for reading in range(1, 11):
        if stopping.update(history(reading, fall), beta=0.1):
            assert stopping.reason is not None
            assert stopping.reason["step"] == 10 * reading
            return reading
    return None


def test_a_collapse_ends_the_stage_soon_and_a_healthy_run_goes_on() -> None:
    first = stops_at(0.02)
    assert first is not None
    assert first <= 4
    assert stops_at(-0.01) is None


def test_tolerance_and_patience_put_it_off() -> None:
    first = stops_at(0.02)
    assert first is not None
    patient, tolerant = stops_at(0.02, patience=4), stops_at(0.02, tolerance=0.15)
    assert patient == first + 2
    assert tolerant is not None
    assert tolerant > first


def test_nothing_to_stop_on_never_stops() -> None:
    assert stops_at(0.1, stop_on=()) is None
    assert stops_at(0.1, stop_on=("image_blindness",)) is None


def test_the_metrics_of_a_readings_own_step_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are logged after the reading of a step, or before it where an evaluation asks for the reading."""
    asked: list[list[int]] = []

    def diagnose(history: Sequence[Mapping[str, Any]], **_: Any) -> list[Finding]:
        asked.append([line["step"] for line in history if "loss" in line])
        return []

    monkeypatch.setattr("cwdpo.probes.callback.diagnose", diagnose)
    logged = [{"stage": "stage2", "step": step, "loss": 0.5} for step in (10, 20)]
    for rule in (StoppingRule.update, StoppingRule.resume):
        rule(StoppingRule(("squeezing",), patience=1, tolerance=0.02), [*logged, *history(2, 0.1)], beta=0.1)
    assert asked == [[10], [10]]
