"""The simulator of histories, and the diagnosis on a few of them; docs/diagnosis.md has the figures of many."""

import json
from pathlib import Path

import pytest

from benchmarks.diagnosis import (
    BEGINS,
    FALLING,
    FORMS,
    HEALTHY,
    Form,
    Kind,
    first_named,
    is_named,
    recorded_table,
    sample,
    simulate,
)

LONG_ANSWER = (150.0, 90.0)


def test_healthy_runs_are_not_blamed() -> None:
    blamed = [one for _, one in sample(HEALTHY, 1, lengths=(8, 20, 40)) if is_named(one.lines)]
    assert blamed == []


@pytest.mark.parametrize("kind", FALLING, ids=lambda kind: kind.name)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "log-probs"])
def test_falls_are_named_within_a_tenth_of_the_run(kind: Kind, form: Form) -> None:
    one = simulate(kind, form, readings=100, noise=0.003, scale=LONG_ANSWER, seed=1)
    first = first_named(one.lines, looks=50)
    assert first is not None
    assert one.begins is not None
    assert -0.15 <= first - one.begins <= 0.1
    assert is_named(one.lines)


def test_the_true_curve_says_when_a_fall_begins() -> None:
    falls = Kind("falls from .5", lambda t: 0.1 - 0.2 * max(0.0, t - 0.5), falls=True)
    one = simulate(falls, "probes", readings=20, noise=0.0, scale=(10.0, 10.0), seed=0)
    assert one.begins == pytest.approx(0.5 + BEGINS / 0.2, abs=0.002)


def test_the_same_seed_gives_the_same_history() -> None:
    def lines(seed: int) -> object:
        return simulate(HEALTHY[0], "metrics", readings=12, noise=0.01, scale=LONG_ANSWER, seed=seed).lines

    assert lines(3) == lines(3)
    assert lines(3) != lines(4)


def test_recorded_runs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a_run" / "prob_train_metrics.json"
    path.parent.mkdir()
    sides = {"chosen": lambda i: -150.0 - i, "rejected": lambda i: -120.0 - 5 * i}
    lines = [{f"logps_eval_prob_train/{side}": at(i) for side, at in sides.items()} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert recorded_table(tmp_path).splitlines()[-1].startswith("| a_run | 20 | +0.0% at 0 | -12.7% | 0 |")
