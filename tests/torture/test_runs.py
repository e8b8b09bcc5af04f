"""A few kills, full disks and second starts of each kind of run; ``make torture`` has many."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from torture.runs import KINDS, Kind, moments

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", KINDS)
def test_a_run_survives(name: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    kind = Kind.make(name, tmp_path, tiny("llava"))
    place = list(KINDS).index(name)
    rng = random.Random(place)
    assert kind.whole["litter"] == []
    assert kind.survives_kill_after(rng.random() * kind.seconds, "random") == ""
    (at,) = moments(kind, 1, rng)
    assert kind.survives_kill_at(at, "file") == ""
    if place == 0:
        assert kind.survives_kill_at(3, "first files") == ""
        assert kind.refuses_second_start("two") == ""
    elif place == 1:
        assert kind.survives_full_disk(kind.changes // 2, "disk") == ""
