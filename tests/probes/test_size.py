"""A probe set is as large as a tenth of the run's work pays for."""

import pytest

from cwdpo.probes.size import LEAST, MOST, ProbeSize, size_within, whole


def units(size: ProbeSize) -> float:
    """Two readings, of which other images are two prompts more; three own answers, two measurements of examples."""
    return 2 * (0.75 * size.rows + 0.95 * size.image_rows) + (2.4 + 1.2) * size.own_rows


@pytest.mark.parametrize("trained", [1, 40, 120, 400, 900, 1500, 3000, 10**6])
def test_the_cost_stays_within_a_tenth_unless_the_run_is_very_short(trained: int) -> None:
    size = size_within(trained)
    assert size.cost == pytest.approx(units(size))
    assert LEAST <= size.rows <= MOST
    assert 4 * size.image_rows >= size.rows  # a quarter at least
    assert size.image_rows == size.own_rows <= size.rows
    assert units(size) <= 0.08 * trained or size == ProbeSize(rows=4, image_rows=1, own_rows=1)
    more = ProbeSize(rows=size.rows, image_rows=size.image_rows + 1, own_rows=size.own_rows + 1)
    assert size == whole(MOST) or size.image_rows == size.rows or units(more) > 0.08 * trained  # no room is left


def test_longer_runs_ask_more_and_the_longest_everything() -> None:
    sizes = [size_within(trained).cost for trained in range(0, 4000, 100)]
    assert sizes == sorted(sizes)
    assert size_within(10_000) == whole(MOST)


def test_the_reference_pass_is_work_too() -> None:
    assert size_within(400, measured=1000) == size_within(700)
