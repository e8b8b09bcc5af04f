"""The numbers of an evaluation: what each is, and its value, interval and difference from the base.

docs/evaluation.md says what each means. Almost every number is a statistic of sums over rows, so that one function
gives intervals and paired differences for all.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cwdpo.evaluation.answers import Vocabulary, distinct, exact_match, option_of, says_yes
from cwdpo.evaluation.captions import LONGEST, bleu, bleu_sums, caption_words, cider_d, rouge_l
from cwdpo.evaluation.intervals import Estimate, Paired, jackknife_estimate, paired_estimate
from cwdpo.evaluation.measuring import Measured, Scored
from cwdpo.evaluation.questions import Question

Values: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Values], Values]
Better: TypeAlias = Literal["up", "down"]

NUM_BINS = 15
"""Of equal width, for calibration, as in :func:`cwdpo.metrics.token_ece`."""


FEWEST_ROWS = 10
"""With fewer, no difference is called beyond chance."""


NAMES = (
    *("logprob_chosen", "logprob_rejected", "logprob_gentle", "ranking_accuracy", "reward_accuracy"),
    *("token_accuracy", "token_brier", "token_ece", "answer_ece", "drift_tv", "drift_js", "drift_kl"),
    *("exact_match", "cut", "choice_logprob", "choice_logprob_mean", "choice_generated"),
    *("yes_no_accuracy", "yes_no_f1", "yes_rate", "yes_no_unclear"),
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "mean_words", "distinct_1", "distinct_2"),
    *("chair_i", "chair_s", "object_recall"),
)
"""Of all numbers; which of them there are depends on the rows and on what is asked for."""


class Number(NamedTuple):
    """A kind of number: how it is shown, and which way is better."""

    name: str
    group: str
    label: str
    better: Better | None = None
    chance: float | None = None
    """The value at chance, for a number that has it and needs no base to be judged."""


@dataclass(frozen=True)
class Result:
    """A number that was measured."""

    number: Number
    paired: Paired

    @property
    def beyond_chance(self) -> bool | None:
        """Whether the 95 % interval of the difference (or of the value, where chance has one) leaves out chance; None
        where there is nothing to compare with, or too few rows for resamples of them to show what chance does."""
        if self.paired.model.n < FEWEST_ROWS:
            return None
        if self.paired.difference is None and self.number.chance is not None:
            return not self.paired.model.low <= self.number.chance <= self.paired.model.high
        return self.paired.beyond_chance

    @property
    def verdict(self) -> Literal["better", "worse", "changed", "no difference shown"] | None:
        """What the difference means; None where there is nothing to compare with."""
        if self.beyond_chance is None:
            return None
        if not self.beyond_chance:
            return "no difference shown"
        if self.number.better is None:
            return "changed"
        gain = self.paired.model.value - (self.number.chance or 0.0)
        gain = gain if self.paired.difference is None else self.paired.difference.value
        return "better" if (gain > 0) == (self.number.better == "up") else "worse"

    def to_json(self) -> dict[str, Any]:
        """As ``evaluation.json`` has it."""
        paired = self.paired
        found: dict[str, Any] = {**self.number._asdict(), **_of_estimate(paired.model)}
        found["base"] = None if paired.base is None else _of_estimate(paired.base)
        found["difference"] = None if paired.difference is None else _of_estimate(paired.difference)
        return found | {"beyond_chance": self.beyond_chance, "verdict": self.verdict}


@dataclass
class Results:
    """All numbers, what was left out and why, and the bins of the calibration."""

    found: list[Result] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    reliability: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    """``model`` and ``base`` -> bins as in ``probes.jsonl``: tokens, their mean confidence, share that was right."""

    def add(
        self,
        number: Number,
        statistic: Statistic,
        model: Values,
        base: Values | None = None,
        *,
        counts: slice | None = None,
    ) -> None:
        """Add a statistic of sums; ``counts`` are the columns that are 0 in rows which the number is not about."""
        assert number.name in NAMES, f"{number.name} is not among NAMES"
        if counts is not None:
            both = [sums for sums in (model, base) if sums is not None]
            about = np.all([sums[:, counts].any(axis=1) for sums in both], axis=0)
            model, base = model[about], None if base is None else base[about]
        try:
            paired = paired_estimate(statistic, model, base)
        except ValueError:
            self.skipped[number.name] = "not defined on these rows"
            return
        self.found.append(Result(number, paired))


def measures(
    questions: Sequence[Question], model: Measured, base: Measured | None, vocabulary: Vocabulary | None = None
) -> Results:
    """Every number that the rows and the models allow.

    Args:
        questions: the rows.
        model: what the model gave for them; with drift where there is a base.
        base: what the base gave.
        vocabulary: of objects, for hallucination; None leaves it out.
    """
    results = Results()
    _likelihood(results, model, base)
    _calibration(results, questions, model, base)
    _drift(results, model, base)
    _choice_by_likelihood(results, questions, model, base)
    if model.answers is None:
        results.skipped["answers"] = "--no-generate was given"
        return results
    said = _Said(questions, [answer.text for answer in model.answers], _texts(base))
    number = Number("exact_match", "answers", "exact match", "up")
    results.add(number, mean, *said.share(lambda text, question: exact_match(text, question.references)))
    results.add(Number("cut", "answers", "cut at the token limit", "down"), mean, *_both(_cut, model, base))
    _multiple_choice(results, said.where(lambda question: bool(question.options)))
    _yes_or_no(results, said.where(lambda question: question.yes is not None))
    is_open = said.where(lambda question: question.is_open)
    if not is_open.questions:
        results.skipped["captions"] = "every row is multiple choice, or yes or no"
        return results
    _captions(results, is_open)
    _variety(results, is_open)
    if vocabulary is None:
        results.skipped["hallucination"] = "needs --vocabulary FILE"
    else:
        _hallucination(results, is_open, vocabulary)
    return results


@dataclass(frozen=True)
class _Said:
    """Answers of the model and of the base, if there is one, to some of the rows."""

    questions: Sequence[Question]
    now: Sequence[str]
    before: Sequence[str] | None

    def where(self, keep: Callable[[Question], bool]) -> "_Said":
        """The rows whose question is kept."""
        places = [i for i, question in enumerate(self.questions) if keep(question)]
        before = None if self.before is None else [self.before[i] for i in places]
        return _Said([self.questions[i] for i in places], [self.now[i] for i in places], before)

    def each(self, of: Callable[[Sequence[str]], Values]) -> tuple[Values, Values | None]:
        """What a function makes of all the model's answers, and of all the base's."""
        return of(self.now), None if self.before is None else of(self.before)

    def sums(self, row: Callable[[str, Question], Sequence[float]]) -> tuple[Values, Values | None]:
        """``(rows, k)`` what each answer adds to sums."""

        def rows(texts: Sequence[str]) -> Values:
            return np.array([row(*pair) for pair in zip(texts, self.questions, strict=True)], dtype=np.float64)

        return self.each(rows)

    def share(self, is_so: Callable[[str, Question], bool]) -> tuple[Values, Values | None]:
        """``(rows, 2)`` whether something is so of each answer, and 1, for :func:`mean`."""
        return self.sums(lambda text, question: (is_so(text, question), 1))


def mean(sums: Values) -> Values:
    """``(..., 2)`` sums of values and of their number -> ``(...)`` their mean, nan where there is none."""
    found: Values = sums[..., 0] / sums[..., 1]
    return found


def ece(sums: Values) -> Values:
    """``(..., 3 * NUM_BINS)`` tokens, confidences and hits by bin -> ``(...)`` :func:`cwdpo.metrics.token_ece`."""
    count, sure, right = np.split(sums, 3, axis=-1)
    found: Values = np.abs(sure - right).sum(axis=-1) / count.sum(axis=-1)
    return found


def f1(sums: Values) -> Values:
    """``(..., 3)`` true positives, false positives, false negatives -> ``(...)`` 2 tp / (2 tp + fp + fn)."""
    found: Values = 2 * sums[..., 0] / (2 * sums[..., 0] + sums[..., 1] + sums[..., 2])
    return found


def bin_sums(confidence: Values, right: Values) -> Values:
    """``(3 * NUM_BINS,)`` what :func:`ece` sums over rows, of one row's confidences and whether each was right."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, NUM_BINS - 1)
    parts = [np.bincount(place, weights, NUM_BINS) for weights in (np.ones_like(confidence), confidence, right)]
    return np.concatenate(parts).astype(np.float64)


def _likelihood(results: Results, model: Measured, base: Measured | None) -> None:
    for group in ("chosen", "rejected", "gentle"):
        better: Better | None = "up" if group == "chosen" else None
        number = Number(f"logprob_{group}", "likelihood", f"log-prob of {group} (nats/token)", better)
        now, before = _both(_lbar, model, base, group)
        if now[:, 1].any():
            results.add(number, mean, now, before, counts=slice(1, 2))
        else:
            results.skipped[number.name] = f"no row has a {group} answer"
    if not any(model.rejected):
        results.skipped["ranking_accuracy"] = "no row has a rejected answer"
        return
    number = Number("ranking_accuracy", "likelihood", "chosen ranked above rejected", "up")
    results.add(number, mean, *_both(_ranked, model, base), counts=slice(1, 2))
    if base is None:
        results.skipped["reward_accuracy"] = "needs --against"
        return
    number = Number("reward_accuracy", "likelihood", "reward accuracy (chance 0.5)", "up", 0.5)
    results.add(number, mean, _rewards(model, base), counts=slice(1, 2))


def _calibration(results: Results, questions: Sequence[Question], model: Measured, base: Measured | None) -> None:
    tokens = Number("token_accuracy", "calibration", "likeliest token right", "up")
    results.add(tokens, mean, *_both(lambda one: _token_sums(one, lambda c, h: h), model, base))
    brier = Number("token_brier", "calibration", "Brier score of likeliest token", "down")
    results.add(brier, mean, *_both(lambda one: _token_sums(one, lambda c, h: (c - h) ** 2), model, base))
    now, before = _both(_bins, model, base)
    results.add(Number("token_ece", "calibration", "ECE of tokens", "down"), ece, now, before)
    for name, sums in (("model", now), ("base", before)):
        if sums is not None:
            results.reliability[name] = _reliability(sums.sum(axis=0))
    if model.answers is not None:
        number = Number("answer_ece", "calibration", "ECE of whole answers", "down")
        now, before = _both(_answer_bins, model, base, questions)
        results.add(number, ece, now, before, counts=slice(0, NUM_BINS))


def _drift(results: Results, model: Measured, base: Measured | None) -> None:
    if base is None or not model.moved:
        results.skipped["drift"] = "needs --against"
        return
    labels = {"tv": "total variation", "js": "Jensen-Shannon (nats)", "kl": "KL(model || base) (nats)"}
    for place, (name, label) in enumerate(labels.items()):
        sums = np.array([[moved[:, place].sum(), len(moved)] for moved in model.moved])
        results.add(Number(f"drift_{name}", "drift", label), mean, sums)


def _choice_by_likelihood(
    results: Results, questions: Sequence[Question], model: Measured, base: Measured | None
) -> None:
    if not any(question.options for question in questions):
        results.skipped["multiple choice"] = "no row has options"
        return
    total = Number("choice_logprob", "multiple choice", "right option, by log-prob", "up")
    results.add(total, mean, *_both(_likeliest_option, model, base, questions, "total"), counts=slice(1, 2))
    per_token = Number("choice_logprob_mean", "multiple choice", "right option, by log-prob/token", "up")
    results.add(per_token, mean, *_both(_likeliest_option, model, base, questions, "mean"), counts=slice(1, 2))


def _multiple_choice(results: Results, said: _Said) -> None:
    if said.questions:
        number = Number("choice_generated", "multiple choice", "right option, generated", "up")
        right = said.share(lambda text, question: option_of(text, question.options) == question.right_option)
        results.add(number, mean, *right)


def _yes_or_no(results: Results, said: _Said) -> None:
    if not said.questions:
        results.skipped["yes or no"] = "no row's chosen answer is yes or no"
        return
    right = said.share(lambda text, question: says_yes(text) is question.yes)
    results.add(Number("yes_no_accuracy", "yes or no", "yes/no right", "up"), mean, *right)
    results.add(Number("yes_no_f1", "yes or no", "F1 of yes", "up"), f1, *said.sums(_yes_counts))
    yes = said.share(lambda text, question: says_yes(text) is True)
    results.add(Number("yes_rate", "yes or no", "share of yes"), mean, *yes)
    unclear = said.share(lambda text, question: says_yes(text) is None)
    results.add(Number("yes_no_unclear", "yes or no", "neither yes nor no", "down"), mean, *unclear)


def _yes_counts(text: str, question: Question) -> tuple[float, float, float]:
    """True positives, false positives, false negatives of yes; an unclear answer to yes is a false negative."""
    says, right = says_yes(text) is True, question.yes is True
    return (says and right, says and not right, right and not says)


def _captions(results: Results, said: _Said) -> None:
    references = [[caption_words(text) for text in question.references] for question in said.questions]

    def bleu_of(texts: Sequence[str]) -> Values:
        return np.array([bleu_sums(caption_words(t), r) for t, r in zip(texts, references, strict=True)])

    def rouge_of(texts: Sequence[str]) -> Values:
        return _with_count([rouge_l(caption_words(t), r) for t, r in zip(texts, references, strict=True)])

    def cider_of(texts: Sequence[str]) -> Values:
        return _with_count(cider_d(list(map(caption_words, texts)), references))

    sums = said.each(bleu_of)
    for n in range(1, LONGEST + 1):
        results.add(Number(f"bleu_{n}", "captions", f"BLEU-{n}", "up"), partial(bleu, longest=n), *sums)
    results.add(Number("rouge_l", "captions", "ROUGE-L", "up"), mean, *said.each(rouge_of))
    results.add(Number("cider_d", "captions", "CIDEr-D (0 to 10)", "up"), mean, *said.each(cider_of))


def _variety(results: Results, said: _Said) -> None:
    length = said.sums(lambda text, question: (len(caption_words(text)), 1))
    results.add(Number("mean_words", "variety", "words an answer"), mean, *length)
    for n in (1, 2):
        number = Number(f"distinct_{n}", "variety", f"distinct-{n}")
        found = [
            distinct([caption_words(t) for t in texts], n) for texts in (said.now, said.before) if texts is not None
        ]
        try:
            model, *base = (jackknife_estimate(*one) for one in found)
            if base:
                difference = jackknife_estimate(found[0][0] - found[1][0], found[0][1] - found[1][1])
                results.found.append(Result(number, Paired(model, base[0], difference)))
            else:
                results.found.append(Result(number, Paired(model)))
        except ValueError:
            results.skipped[number.name] = f"too few answers of {n} words or more"


def _hallucination(results: Results, said: _Said, vocabulary: Vocabulary) -> None:
    def counts(text: str, question: Question) -> Sequence[float]:
        named = vocabulary.named_in(text)
        texts = question.references if question.objects is None else question.objects
        there = set[str]().union(*map(vocabulary.named_in, texts))
        return (len(named - there), len(named), bool(named - there), 1, len(named & there), len(there))

    now, then = said.sums(counts)
    for place, number in enumerate(
        (
            Number("chair_i", "hallucination", "CHAIR-i (named, not there)", "down"),
            Number("chair_s", "hallucination", "CHAIR-s (answers with such)", "down"),
            Number("object_recall", "hallucination", "objects named, of those there", "up"),
        )
    ):
        columns = slice(2 * place, 2 * place + 2)
        results.add(number, mean, now[:, columns], None if then is None else then[:, columns])


def _texts(one: Measured | None) -> list[str] | None:
    return None if one is None or one.answers is None else [answer.text for answer in one.answers]


def _cut(one: Measured) -> Values:
    assert one.answers is not None
    return _with_count([float(not answer.ended) for answer in one.answers])


def _both(
    of: Callable[..., Values], model: Measured, base: Measured | None, *arguments: object
) -> tuple[Values, Values | None]:
    """The same of the model and of the base, if there is one."""
    return of(model, *arguments), None if base is None else of(base, *arguments)


def _lbar(one: Measured, group: str) -> Values:
    """``(rows, 2)`` sum of lbar over a row's answers of a group, and how many there are."""
    answers = {
        "chosen": [[answer] for answer in one.chosen],
        "rejected": one.rejected,
        "gentle": [[] if answer is None else [answer] for answer in one.gentle],
    }[group]
    return np.array([[sum(answer.mean for answer in row), len(row)] for row in answers], dtype=np.float64)


def _ranked(one: Measured) -> Values:
    """``(rows, 2)`` pairs whose chosen answer has the higher lbar, and pairs; equal ones count half."""
    won = [
        [_won(chosen.mean - wrong.mean) for wrong in row] for chosen, row in zip(one.chosen, one.rejected, strict=True)
    ]
    return np.array([[sum(row), len(row)] for row in won], dtype=np.float64)


def _rewards(model: Measured, base: Measured) -> Values:
    """The same by log pi - log pi_base, summed over tokens: DPO's implicit reward."""
    rows = []
    for i, rejected in enumerate(model.rejected):
        gained = model.chosen[i].total - base.chosen[i].total
        won = [_won(gained - (now.total - then.total)) for now, then in zip(rejected, base.rejected[i], strict=True)]
        rows.append([sum(won), len(won)])
    return np.array(rows, dtype=np.float64)


def _won(difference: float) -> float:
    return 0.5 if difference == 0 else float(difference > 0)


def _token_sums(one: Measured, of: Callable[[Values, Values], Values]) -> Values:
    """``(rows, 2)`` a value of each token, summed, and the number of tokens."""
    rows = [[of(sure, hit).sum(), len(hit)] for sure, hit in zip(one.confidence, one.hit, strict=True)]
    return np.array(rows, dtype=np.float64)


def _bins(one: Measured) -> Values:
    return np.array([bin_sums(sure, hit) for sure, hit in zip(one.confidence, one.hit, strict=True)])


def _answer_bins(one: Measured, questions: Sequence[Question]) -> Values:
    """Of each row's own answer: the probability of the whole answer, exp of the sum of its tokens' log-probs, against
    whether it is an exact match. Empty answers, which have no probability, are left out."""
    assert one.answers is not None
    rows = []
    for question, answer, own in zip(questions, one.answers, one.own, strict=True):
        right = exact_match(answer.text, question.references)
        sure = np.zeros(0) if own is None else np.array([min(1.0, math.exp(own.total))])
        rows.append(bin_sums(sure, np.full(len(sure), float(right))))
    return np.array(rows)


def _reliability(sums: Values) -> list[tuple[int, float, float]]:
    count, sure, right = np.split(sums, 3)
    least = np.maximum(count, 1)
    return [(int(n), float(c), float(r)) for n, c, r in zip(count, sure / least, right / least, strict=True)]


def _likeliest_option(one: Measured, questions: Sequence[Question], by: Literal["total", "mean"]) -> Values:
    """``(rows, 2)`` whether the likeliest option is the right one, and 1 for rows that have options; the first of equal
    ones counts, and an option that the model cannot take is never the likeliest."""

    def score(answer: Scored | None) -> float:
        return -math.inf if answer is None else answer.total if by == "total" else answer.mean

    rows = np.zeros((len(questions), 2))
    for i, (question, scored) in enumerate(zip(questions, one.options, strict=True)):
        if question.options:
            likeliest = max(range(len(scored)), key=lambda place, scored=scored: score(scored[place]))  # type: ignore[misc]
            rows[i] = (likeliest == question.right_option, 1)
    return rows


def _with_count(values: Sequence[float] | Values) -> Values:
    """``(rows, 2)`` values, and 1."""
    return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)


def _of_estimate(estimate: Estimate) -> dict[str, float]:
    return estimate._asdict()
