"""Win rates, the effect of length, and Bradley-Terry strengths against arithmetic by hand, scipy, and known truths."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from cwdpo.errors import DataError
from cwdpo.evaluation.judging.win_rates import (
    both_orders,
    bradley_terry,
    is_connected,
    length_controlled,
    order_report,
    strengths,
    win_rate,
)

Floats = NDArray[np.float64]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_orders_that_disagree_are_ties_and_are_counted() -> None:
    nan = math.nan
    one = np.array([1.0, 1.0, 0.0, 0.0, 0.5, nan, 1.0])
    other = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 1.0, nan])
    assert both_orders(one, other).tolist()[:5] == [1, 0.5, 0, 0.5, 0.5]
    assert np.isnan(both_orders(one, other)[5:]).all()
    found = order_report(one, other)
    assert found.consistent is not None
    assert found.first_preferred is not None
    assert found.consistent[::3] == (3 / 5, 5)
    # shown first and preferred: rows 0, 1 (A first), 1, 2 (B first); of 8 decided verdicts
    assert found.first_preferred[::3] == (4 / 8, 8)
    always_first = order_report(np.ones(9), np.zeros(9))
    assert always_first.first_preferred is not None
    assert always_first.first_preferred.value == 1
    nothing = order_report(np.array([nan]), np.array([1.0]))
    assert nothing.consistent is nothing.first_preferred is None
    assert order_report(np.array([0.5]), np.array([0.5])).first_preferred is None


def test_win_rates_count_ties_half() -> None:
    scores = np.array([1.0, 1.0, 1.0, 0.0, 0.5, 0.5])
    found = win_rate(scores, np.zeros(6), samples=200)
    assert found.wilson.value == found.bootstrap.value == found.length_controlled.value == pytest.approx(4 / 6)
    theirs = stats.binomtest(4, 6).proportion_ci(method="wilson")
    assert found.wilson[1:3] == pytest.approx((theirs.low, theirs.high))
    assert found.decided is not None
    assert found.decided[::3] == (3 / 4, 4)
    assert win_rate(np.full(3, 0.5), np.zeros(3), samples=20).decided is None


@pytest.mark.parametrize(("longer", "shorter"), [(0.9, 0.4), (0.5, 0.5), (0.3, 0.8)])
def test_length_control_where_the_answer_is_known(longer: float, shorter: float) -> None:
    """Half of the rows have d = +1 and half -1, so the regression has two cells and fits both exactly:
    logit(longer) = theta + phi tanh(1), logit(shorter) = theta - phi tanh(1)."""
    rows = 1000
    wins = [round(rows * longer), round(rows * shorter)]
    scores = np.concatenate([np.repeat([1.0, 0.0], [won, rows - won]) for won in wins])
    difference = np.repeat([7.0, -7.0], rows)
    theta = (math.log(longer / (1 - longer)) + math.log(shorter / (1 - shorter))) / 2
    assert length_controlled(scores, difference)[0] == pytest.approx(sigmoid(theta), abs=1e-5)


def test_length_control_takes_out_a_preference_for_length_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    difference = rng.normal(20, 15, size=6000)  # A is mostly longer
    reach = np.tanh(difference / difference.std())
    chance = 1 / (1 + np.exp(-(-0.4 + 1.5 * reach)))
    scores = (rng.random(6000) < chance).astype(float)
    assert scores.mean() > 0.6
    found = win_rate(scores, difference, samples=100).length_controlled
    assert found.low < sigmoid(-0.4) < found.high
    assert found.high - found.low < 0.12
    fair = (rng.random(6000) < 0.7).astype(float)
    assert length_controlled(fair, difference)[0] == pytest.approx(0.7, abs=0.04)


def test_the_solver_minimises_what_scipy_minimises() -> None:
    rng = np.random.default_rng(1)
    difference, scores = rng.normal(3, 20, size=60), rng.choice([0.0, 0.5, 1.0], size=60)
    counts = np.stack([np.ones(60), rng.integers(0, 4, size=60)])
    found = length_controlled(scores, difference, counts)
    for one, times in zip(found, counts, strict=True):
        rows = np.repeat(np.arange(60), times.astype(int))
        d, y = difference[rows], scores[rows]

        def objective(w: Floats, d: Floats = d, y: Floats = y) -> float:
            z = [w[0] + w[1] * math.tanh(v / d.std()) for v in d]
            losses = [math.log1p(math.exp(-abs(v))) + max(v, 0) - t * v for v, t in zip(z, y, strict=True)]
            return math.fsum(losses) + 1e-3 * float(w @ w) / 2

        theirs = optimize.minimize(objective, np.zeros(2), method="BFGS", options={"gtol": 1e-8}).x
        assert one == pytest.approx(sigmoid(theirs[0]), abs=1e-6)


def test_the_solver_stays_finite_where_one_side_wins_everything() -> None:
    assert 0.99 < length_controlled(np.ones(50), np.arange(50.0))[0] < 1
    split = length_controlled(np.repeat([1.0, 0.0], 20), np.repeat([3.0, -3.0], 20))  # length decides it all
    assert split[0] == pytest.approx(0.5)


def test_lengths_that_do_not_differ_change_nothing() -> None:
    assert length_controlled(np.array([1.0, 0.0, 1.0]), np.full(3, 1e6 / 3))[0] == pytest.approx(2 / 3, abs=1e-12)


def test_two_models_differ_by_the_log_odds() -> None:
    found = bradley_terry(np.array([[9.0, 30.0], [10.0, 9.0]]))  # the diagonal says nothing
    assert found == pytest.approx([math.log(3) / 2, -math.log(3) / 2])


def test_strengths_solve_the_likelihood_equations() -> None:
    """At the maximum, each model has as many points as its strength expects (Ford, 1957)."""
    wins = np.array([[0.0, 7.5, 12], [2.5, 0, 6], [1, 5, 0]])
    strength = [math.exp(value) for value in bradley_terry(wins)]
    for i in range(3):
        expected = sum(
            (wins[i, j] + wins[j, i]) * strength[i] / (strength[i] + strength[j]) for j in range(3) if j != i
        )
        assert wins[i].sum() == pytest.approx(expected, rel=1e-6)
    assert math.prod(strength) == pytest.approx(1)
    assert bradley_terry(np.stack([wins, wins.T]))[1] == pytest.approx(bradley_terry(wins.T))


def test_known_strengths_are_recovered() -> None:
    truth = np.array([0.8, 0.1, -0.3, -0.6])
    names, pairs = ["a", "b", "c", "d"], list(itertools.combinations(range(4), 2))
    rng = np.random.default_rng(2)
    inside = 0
    for draw in range(5):
        chance = np.array([sigmoid(truth[i] - truth[j]) for i, j in pairs])
        scores = (rng.random((400, 6)) < chance).astype(float)
        scores[rng.random((400, 6)) < 0.05] = math.nan
        found = strengths(scores, pairs, names, samples=200, seed=draw)
        assert [one.value for one in found] == pytest.approx(truth, abs=0.2)
        inside += sum(one.low <= true <= one.high for one, true in zip(found, truth, strict=True))
    assert inside >= 16  # of 20, at 95 %
    assert max(one.high - one.low for one in found) < 0.35


def test_disconnected_comparisons_are_refused_in_one_line() -> None:
    pairs = [(0, 1), (0, 2), (1, 2)]
    scores = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])  # "best" never lost; the two others share their points
    with pytest.raises(DataError, match="no Bradley-Terry strengths: dpo, sft never won a point against best") as said:
        strengths(scores, pairs, ["best", "dpo", "sft"])
    assert "\n" not in str(said.value)
    assert not is_connected(np.array([[0.0, 2.0], [0.0, 0.0]]))
    assert is_connected(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))  # a circle
    assert not is_connected(np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]))
    assert np.isnan(bradley_terry(np.array([[0.0, 2.0], [0.0, 0.0]]))).all()
