"""Seconds by phase add up to the whole, wherever phases stand in each other."""

from contextlib import suppress

from cwdpo.phases import PhaseClock, phase


def test_phases_inside_each_other_count_for_themselves_and_add_up() -> None:
    now = [10.0]
    clock = PhaseClock("checks", earlier={"steps": 100.0, "gone": 5.0}, clock=lambda: now[0])
    clock.add("imports", 7.0)
    with clock.running():
        now[0] += 1
        with phase("steps"):
            now[0] += 20
            with phase("probes"):
                now[0] += 3
                with phase("probes"):
                    now[0] += 2
            with suppress(KeyError), phase("sampling"):
                now[0] += 4
                raise KeyError
            now[0] += 30
        now[0] += 0.5
    with phase("report"):  # of nobody's clock
        now[0] += 1000
    seconds = clock.seconds
    assert {name: value for name, value in seconds.items() if value} == {
        "imports": 7.0,
        "checks": 1001.5,
        "steps": 150.0,
        "probes": 5.0,
        "sampling": 4.0,
    }
    assert sum(seconds.values()) == now[0] - 10 + 7 + 100
