"""The audit of pairs: clues that were put there are found, and nothing is found where there is nothing."""

import math
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from cwdpo.data.rows import Message, Row
from cwdpo.errors import DataError
from cwdpo.evaluation.audit.clues import (
    ADVICE,
    FAMILIES,
    Audit,
    Pairs,
    audit_texts,
    fit_preference,
    held_out_points,
)

THINGS = ["cat", "dog", "cup", "lamp", "chair", "table", "ball", "boat", "tree", "car"]
PLACES = ["top left", "top right", "bottom left", "bottom right"]


def row(chosen: str, *rejected: str) -> Row:
    return Row(prompt=(Message("user", ("what is there",)),), chosen=chosen, rejected=rejected)


def sentence(rng: random.Random) -> str:
    return f"the {rng.choice(THINGS)} is {rng.choice(('near', 'under', 'behind'))} a {rng.choice(THINGS)}"


def rows(seed: int, number: int, change: Callable[[str, random.Random], str] = lambda text, rng: text) -> list[Row]:
    """Both answers are drawn the same way; then the rejected one may be changed."""
    rng = random.Random(seed)
    return [row(sentence(rng), change(sentence(rng), rng)) for _ in range(number)]


def separation(audit: Audit, family: str) -> float:
    return next(one.accuracy.value for one in audit.separations if one.family == family)


def test_no_warning_and_no_clue_where_there_is_nothing() -> None:
    found = [audit_texts(rows(seed, 120)) for seed in range(20)]
    assert sum(bool(one.warnings) for one in found) <= 1
    assert sum(bool(one.clues) for one in found) <= 1
    accuracies = [one.accuracy.value for audit in found for one in audit.separations]
    assert np.mean(accuracies) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("family", "change", "feature"),
    [
        ("words", lambda text, rng: text.replace("is", "seems" if rng.random() < 0.8 else "is"), "'seems'"),
        ("phrases", lambda text, rng: text if rng.random() < 0.2 else " ".join(text.split()[::-1]), None),
        ("first word", lambda text, rng: "so " + text if rng.random() < 0.8 else text, "begins with 'so'"),
        ("punctuation", lambda text, rng: text + "." if rng.random() < 0.8 else text, "ends with '.'"),
        ("digits", lambda text, rng: text + " 3" if rng.random() < 0.8 else text, "numbers in digits"),
        ("length", lambda text, rng: " ".join(text.split()[:4]) if rng.random() < 0.8 else text, "words"),
        ("negations", lambda text, rng: text.replace("is", "isn't") if rng.random() < 0.8 else text, "negations"),
        ("repetition", lambda text, rng: f"the the {text[4:]}" if rng.random() < 0.8 else text, None),
    ],
)
def test_a_known_clue_is_found_and_named(
    family: str, change: Callable[[str, random.Random], str], feature: str | None
) -> None:
    found = audit_texts(rows(0, 150, change))
    assert separation(found, family) > 0.75
    (warning,) = [one for one in found.warnings if one.name == family]
    assert warning.advice == ADVICE[family]
    assert "held-out pairs" in warning.evidence
    if feature is not None:
        clue = next(one for one in found.clues if (one.family, one.feature) == (family, feature))
        up, down = clue.more_in_chosen, clue.more_in_rejected
        assert max(up, down) > 100 > 10 > min(up, down)


def test_correcting_half_of_a_swap_names_one_place_twice() -> None:
    rng = random.Random(1)
    made = []
    for _ in range(120):
        (one, other), (here, there) = rng.sample(THINGS, 2), rng.sample(PLACES, 2)
        half = rng.choice([(here, here), (there, there)])
        made.append(row(f"a {one} {here} and a {other} {there}", f"a {one} {half[0]} and a {other} {half[1]}"))
    found = audit_texts(made)
    assert separation(found, "repetition") == separation(found, "words") == 1  # one place is always missing
    assert separation(found, "length") == pytest.approx(0.5, abs=0.1)
    (warning,) = [one for one in found.warnings if one.name == "repetition"]
    assert "two words in a row that come again: more often in the rejected answer (120 of 120 rows" in warning.evidence
    assert "half of a swap" in warning.advice


def test_shares_are_counted_by_hand() -> None:
    four = [
        row("one two three", "one"),
        row("one", "one two"),
        row("one two", "three four"),
        row("a b c", "a", "a b c d"),  # one row with two pairs: half a point
    ]
    found = audit_texts(four, count_tokens=len)
    assert (found.rows, found.pairs, found.separations) == (4, 5, [])
    won = {one.name: one.won for one in found.shortcuts}
    assert won["always the longer, words"].value == (1 + 0 + 0.5 + 0.5) / 4
    assert won["always the shorter, words"].value == 1 - won["always the longer, words"].value
    assert won["always the longer, tokens"].value == (1 + 0 + 0 + 0.5) / 4  # "one two" and "three four" differ now
    theirs = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert won["always the longer, words"][1:] == pytest.approx((theirs.low, theirs.high, 4))


def test_features_of_an_answer() -> None:
    text = "No, it isn\N{RIGHT SINGLE QUOTATION MARK}t: 2 cats, 10 dogs."
    assert FAMILIES["negations"](text) == {"negations": 2}
    assert FAMILIES["digits"](text) == {"numbers in digits": 2}
    assert FAMILIES["first word"](text) == {"begins with 'no'": 1}
    punctuation = FAMILIES["punctuation"](text)
    assert (punctuation["','"], punctuation["ends with '.'"], punctuation["marks"]) == (2, 1, 5)
    assert FAMILIES["length"](text) == {"words": 7, "characters": len(text)}
    assert "'cats 10'" in FAMILIES["phrases"](text)
    again = FAMILIES["repetition"]("top left and top left and top")
    assert again["words that come again"] == 3
    assert again["two words in a row that come again"] == 3
    assert again["'top left' twice"] == 1
    assert FAMILIES["first word"]("...") == {}


def test_pairs_of_one_chosen_text_do_not_teach_each_other() -> None:
    """Each text is on one side in all of its pairs, so that a fit that had seen it would win them all."""
    rng = random.Random(2)
    made = []
    for number in range(40):
        texts = [f"{rng.choice(THINGS)} {number} {side}{number}" for side in "xy"]
        made += [row(*texts)] * 3
    assert 0.3 < separation(audit_texts(made), "words") < 0.7


def test_the_regression_minimises_what_scipy_minimises() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-1, 2, size=(80, 6)).astype(np.float32)

    def objective(w: np.ndarray) -> float:
        return math.fsum(math.log1p(math.exp(-float(z))) for z in x @ w) + 0.5 * float(w @ w) / 2

    theirs = optimize.minimize(objective, np.zeros(6), method="BFGS").x
    assert fit_preference(x, ridge=0.5) == pytest.approx(theirs, abs=2e-3)
    assert fit_preference(np.zeros((5, 0), dtype=np.float32)).shape == (0,)


def test_held_out_pairs_are_judged_by_the_others() -> None:
    x = np.array([[1], [1], [-1], [0]], dtype=np.float32)
    assert held_out_points(x, np.array([0, 1, 2, 2])).tolist() == [0.5, 0.5, 0, 0.5]  # 0: the others cancel out


def test_rows_without_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="no row has a rejected answer"):
        Pairs([row("a")])


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, cwdpo.cli.audit, cwdpo.evaluation.audit.clues, cwdpo.data.reading; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
