"""Every number of an evaluation against arithmetic by hand, on what two made-up models gave for a few rows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from cwdpo.data.rows import Message, Row
from cwdpo.evaluation.answers import Vocabulary
from cwdpo.evaluation.captions import caption_words
from cwdpo.evaluation.intervals import Estimate, Paired
from cwdpo.evaluation.measures import NAMES, NUM_BINS, Number, Result, Results, bin_sums, ece, measures
from cwdpo.evaluation.measuring import Measured, Scored
from cwdpo.evaluation.questions import Question
from cwdpo.generation import Generated


def question(chosen: str, **known: Any) -> Question:
    row = Row(prompt=(Message("user", ("What?",)),), chosen=chosen)
    return Question(row, known.pop("references", (chosen,)), **known)


QUESTIONS = [
    question("Yes, it is."),
    question("no"),
    question("yes"),
    question("No."),
    question("the dog", options=("a cat", "dog"), right_option=1),
    question("A", options=("red", "blue"), right_option=0),
    question("A dog on a sofa.", references=("A dog on a sofa.", "A puppy there.")),
    question("Two cats.", objects=("cat", "hot", "dog", "sofa")),
]
SAID = ["Yes.", "Yes", "perhaps", "no", "B", "blue", "a puppy there", "a hot dog and a cat on a couch"]
SAID_BEFORE = ["Yes.", "No", "yes", "no", "a cat", "red", "A dog on a sofa", "a cat"]
VOCABULARY = Vocabulary(
    {
        ("dog",): "dog",
        ("puppy",): "dog",
        ("hot", "dog"): "hot dog",
        ("cat",): "cat",
        ("couch",): "couch",
        ("sofa",): "couch",
    }
)


def measured(said: list[str] | None, *, shift: float = 0.0, moved: bool = False) -> Measured:
    """Numbers that grow with the row; a shift moves the chosen answers up and the rejected ones down."""
    tokens = [np.array([0.95, 0.3 + i / 20]) for i in range(8)]
    return Measured(
        chosen=[Scored(-4.0 - i + shift, 4) for i in range(8)],
        rejected=[[], [Scored(-2.0, 2), Scored(-1.0 - shift, 2)], *[[Scored(-9.0 + shift, 3)] for _ in range(6)]],
        gentle=[None] * 7 + [Scored(-3.0, 2)],
        options=[[]] * 4 + [[Scored(-3.0, 1), Scored(-4.0, 4)], [Scored(-2.0, 2), None], [], []],
        confidence=tokens,
        hit=[np.array([1.0, 0.0])] * 8,
        moved=[np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])] + [np.array([[0.5, 0.6, 0.7]])] * 7 if moved else [],
        answers=None if said is None else [Generated(text, text != "blue") for text in said],
        own=[] if said is None else [None, *[Scored(math.log(0.5), 2)] * 7],
    )


def by_name(results: Results) -> dict[str, Result]:
    assert len({result.number.name for result in results.found}) == len(results.found)
    return {result.number.name: result for result in results.found}


EXPECTED = {
    "logprob_chosen": sum((-4 - i + 1) / 4 for i in range(8)) / 8,
    "logprob_rejected": (-1.0 + -1.0 + 6 * (-8 / 3)) / 8,
    "logprob_gentle": -1.5,
    # row 1: -4/4 equals -1 twice; rows 2 to 7: -(3 + i)/4 against -8/3
    "ranking_accuracy": (0.5 + 0.5 + 6) / 8,
    # the chosen gained 1; the rejected of row 1 gained 0 and -1, those of the others 1
    "reward_accuracy": (1 + 1 + 6 * 0.5) / 8,
    "token_accuracy": 0.5,
    "token_brier": sum(0.05**2 + (0.3 + i / 20) ** 2 for i in range(8)) / 16,
    "drift_tv": (0.4 + 7 * 0.5) / 9,
    "drift_js": (0.4 + 7 * 0.6) / 9,
    "drift_kl": (0.4 + 7 * 0.7) / 9,
    "choice_logprob": 1 / 2,  # -3 beats -4; and the only option that could be scored is right
    "choice_logprob_mean": 2 / 2,  # -1 beats -3
    "exact_match": 2 / 8,  # "no", and the second right answer of row 6; "Yes." is not "Yes, it is."
    "cut": 1 / 8,
    "choice_generated": 1 / 2,
    "yes_no_accuracy": 2 / 4,
    "yes_no_f1": 2 * 1 / (2 * 1 + 1 + 1),
    "yes_rate": 2 / 4,
    "yes_no_unclear": 1 / 4,
    "mean_words": (3 + 9) / 2,
    "distinct_1": 9 / 12,
    "distinct_2": 1.0,
    "chair_i": 1 / 4,  # the hot dog; the dog of row 6 is there, and so are cat and couch
    "chair_s": 1 / 2,
    "object_recall": (1 + 2) / (2 + 3),
}


@pytest.fixture(scope="module")
def results() -> Results:
    return measures(QUESTIONS, measured(SAID, shift=1.0, moved=True), measured(SAID_BEFORE), VOCABULARY)


def test_numbers_by_hand(results: Results) -> None:
    expected = EXPECTED
    found = {name: result.paired.model.value for name, result in by_name(results).items()}
    others = {"token_ece", "answer_ece", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"}
    assert {name: value for name, value in found.items() if name not in others} == pytest.approx(expected)
    assert found.keys() - expected.keys() == others
    assert found.keys() <= {*NAMES}


def test_f1_of_yes_counts_both_kinds_of_mistakes() -> None:
    asked = [question(chosen) for chosen in ("yes", "yes", "yes", "yes", "no", "no")]
    one = measured(["yes", "yes", "no", "perhaps", "yes", "no", "", ""])
    one = Measured(
        chosen=one.chosen[:6],
        rejected=[[]] * 6,
        gentle=[None] * 6,
        options=[[]] * 6,
        confidence=one.confidence[:6],
        hit=one.hit[:6],
        answers=one.answers[:6] if one.answers else None,
        own=one.own[:6],
    )
    found = by_name(measures(asked, one, None))
    precision, recall = 2 / 3, 2 / 4
    assert found["yes_no_f1"].paired.model.value == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["yes_rate"].paired.model.value == 3 / 6


def test_the_base_and_the_difference(results: Results) -> None:
    found = by_name(results)
    for name, before in (("yes_no_accuracy", 1.0), ("choice_generated", 0.5), ("exact_match", 4 / 8), ("chair_i", 0.0)):
        paired = found[name].paired
        assert paired.base is not None
        assert paired.difference is not None
        assert paired.base.value == pytest.approx(before)
        assert paired.difference.value == pytest.approx(paired.model.value - before)
    assert found["logprob_chosen"].paired.difference == pytest.approx((0.25, 0.25, 0.25, 8))
    assert found["reward_accuracy"].paired.base is None
    assert found["drift_tv"].paired.difference is None
    assert found["yes_no_accuracy"].paired.model.n == 4
    assert found["logprob_gentle"].paired.model.n == 1
    assert found["logprob_rejected"].paired.model.n == 7


def test_calibration_equals_torchmetrics(results: Results) -> None:
    one = measured(SAID)
    confidence = torch.tensor(np.concatenate(one.confidence))
    hit = torch.tensor(np.concatenate(one.hit))
    theirs = binary_calibration_error(confidence, hit.long(), n_bins=NUM_BINS).item()
    found = by_name(results)
    assert found["token_ece"].paired.model.value == pytest.approx(theirs, abs=1e-6)
    # the first answer was empty to the engine; of the others 1 is right, and each had probability 1/2
    assert found["answer_ece"].paired.model.value == pytest.approx(abs(2 / 7 - 0.5), abs=1e-9)
    assert found["answer_ece"].paired.model.n == 7
    bins = results.reliability["model"]
    assert sum(n for n, _, _ in bins) == 16
    assert sum(n * abs(sure - right) for n, sure, right in bins) / 16 == pytest.approx(theirs, abs=1e-6)


def test_bins_equal_torchmetrics_on_many_values() -> None:
    rng = np.random.default_rng(0)
    sure = np.concatenate([rng.random(300), [0.0, 1.0]])
    right = (rng.random(302) < sure).astype(float)
    theirs = binary_calibration_error(torch.tensor(sure), torch.tensor(right).long(), n_bins=NUM_BINS).item()
    assert float(ece(bin_sums(sure, right))) == pytest.approx(theirs, abs=1e-6)


def test_what_cannot_be_measured_is_named() -> None:
    some = [question("A dog."), question("A cat.")]
    one = Measured(
        chosen=[Scored(-1.0, 1)] * 2,
        rejected=[[], []],
        gentle=[None] * 2,
        options=[[], []],
        confidence=[np.array([0.5])] * 2,
        hit=[np.array([1.0])] * 2,
    )
    silent = measures(some, one, None)
    assert silent.skipped == {
        "logprob_rejected": "no row has a rejected answer",
        "logprob_gentle": "no row has a gentle answer",
        "ranking_accuracy": "no row has a rejected answer",
        "drift": "needs --against",
        "multiple choice": "no row has options",
        "answers": "--no-generate was given",
    }
    one.answers, one.own = [Generated("a", True), Generated("", True)], [Scored(-1.0, 1), None]
    assert measures(some, one, None).skipped.keys() - silent.skipped.keys() == {
        "yes or no",
        "distinct_1",  # without the first answer there is no word
        "distinct_2",
        "hallucination",
    }
    closed = measures(QUESTIONS[:6] + QUESTIONS[:2], measured(SAID), None)
    assert closed.skipped["captions"] == "every row is multiple choice, or yes or no"


@pytest.mark.parametrize(
    ("better", "difference", "n", "verdict"),
    [
        ("up", (0.1, 0.05, 0.2), 10, "better"),
        ("up", (-0.1, -0.2, -0.05), 10, "worse"),
        ("down", (-0.1, -0.2, -0.05), 10, "better"),
        (None, (-0.1, -0.2, -0.05), 10, "changed"),
        ("up", (0.1, -0.05, 0.2), 10, "no difference shown"),
        ("up", (0.1, 0.05, 0.2), 9, None),
    ],
)
def test_verdicts(better: Any, difference: tuple[float, float, float], n: int, verdict: str | None) -> None:
    whole = Estimate(0.5, 0.4, 0.6, n)
    result = Result(Number("x", "group", "label", better), Paired(whole, whole, Estimate(*difference, n)))
    assert result.verdict == verdict
    assert result.to_json()["verdict"] == verdict
    assert result.to_json()["difference"]["low"] == difference[1]


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(0.7, 0.6, 0.8, "better"), (0.3, 0.2, 0.4, "worse"), (0.6, 0.5, 0.8, "no difference shown")],
)
def test_a_number_with_a_value_at_chance_needs_no_base(value: float, low: float, high: float, verdict: str) -> None:
    number = Number("x", "group", "label", "up", 0.5)
    assert Result(number, Paired(Estimate(value, low, high, 20))).verdict == verdict
    assert Result(number._replace(chance=None), Paired(Estimate(value, low, high, 20))).verdict is None


def test_the_words_that_are_counted() -> None:
    assert [len(caption_words(text)) for text in SAID[-2:]] == [3, 9]
