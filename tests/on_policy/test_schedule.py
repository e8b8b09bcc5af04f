"""When negatives are sampled again and for which share, against steps counted by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from cwdpo.config.recipe import NegativesConfig
from cwdpo.negatives.candidates import Refresh
from cwdpo.on_policy.schedule import RefreshTimes, Staleness, epoch_steps


def at(step: int, *, of: int = 100, epoch: float = 0.0) -> Any:
    return SimpleNamespace(global_step=step, max_steps=of, epoch=epoch)


def times(**settings: Any) -> RefreshTimes:
    return RefreshTimes(NegativesConfig(**settings))


def refresh(step: int, *, epoch: int = 0, error: str | None = None) -> Refresh:
    return Refresh(number=1, step=step, epoch=epoch, seed=0, error=error)


RISE: Any = [[0, 0.0], [0.5, 0.5], [0.6, 0.1], [1, 0.1]]


@pytest.mark.parametrize(
    ("settings", "step", "largest"),
    [
        ({"on_policy_fraction": 0.3}, 0, 0.3),
        ({"on_policy_fraction": RISE, "refresh": 10}, 20, 0.3),  # 0.2 now, 0.3 in ten steps
        ({"on_policy_fraction": RISE, "refresh": 10}, 45, 0.5),  # over the peak at step 50
        ({"on_policy_fraction": RISE, "refresh": 10}, 51, 0.46),  # falling: it is now
        ({"on_policy_fraction": RISE, "refresh": 10}, 95, 0.1),
        ({"on_policy_fraction": RISE, "refresh": "epoch"}, 0, 0.25),  # an epoch is 25 steps
        ({"on_policy_fraction": RISE, "refresh": "auto"}, 0, 0.5),  # nobody knows when the next one comes
    ],
)
def test_no_more_is_sampled_than_the_steps_to_the_next_refresh_can_use(
    settings: dict[str, Any], step: int, largest: float
) -> None:
    assert times(**settings).largest_share(at(step), epoch_steps=25) == pytest.approx(largest)


def test_it_is_due_when_there_is_a_use_for_it() -> None:
    none = Staleness()
    assert times().is_due(at(0), None, none)
    assert not times(on_policy_fraction=0).is_due(at(0), None, none)
    assert times(on_policy_fraction=0, curriculum=0.5).is_due(at(0), None, none)
    assert not times(on_policy_fraction=RISE).is_due(at(0), None, none)
    assert times(on_policy_fraction=RISE).is_due(at(1), None, none)
    assert times(on_policy_fraction=RISE, curriculum=[[0, 0], [1, 1]]).is_due(at(0), None, none)


def test_epochs_and_steps() -> None:
    none = Staleness()
    assert not times().is_due(at(24, epoch=0.96), refresh(0), none)
    assert times().is_due(at(25, epoch=1.0), refresh(0), none)
    assert times().is_due(at(25, epoch=0.9999999), refresh(0), none)  # sums of steps do not quite reach it
    assert not times(refresh=10).is_due(at(19), refresh(10), none)
    assert times(refresh=10).is_due(at(20), refresh(10), none)


def test_auto_tries_again_after_an_error_and_where_no_sample_was_kept() -> None:
    """Without a sample in use there is no weight whose fall could ask for new ones."""
    auto, fresh, stale = times(refresh="auto"), Staleness([0.8] * 20), Staleness([0.8] * 10 + [0.3] * 10)
    assert auto.is_due(at(25), refresh(0), stale)
    assert not auto.is_due(at(99), refresh(0), fresh)
    for found, seen in ((refresh(0, error="no server"), stale), (refresh(0), Staleness())):
        assert not auto.is_due(at(19), found, seen)
        assert auto.is_due(at(20), found, seen)


def test_whether_anything_is_ever_sampled() -> None:
    assert times(on_policy_fraction=RISE).samples
    assert times(on_policy_fraction=0.1).samples
    assert not times(on_policy_fraction=0).samples
    assert not times(on_policy_fraction=[[0, 0], [1, 0]]).samples


def test_steps_of_an_epoch() -> None:
    assert epoch_steps(24, num_rows=49) == 3
