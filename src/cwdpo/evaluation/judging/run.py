"""Verdicts on every pair of models in both orders, kept as they come, and what follows from them."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from cwdpo.errors import DataError, UserError
from cwdpo.evaluation.intervals import Estimate, Values
from cwdpo.evaluation.judging.contestants import (
    Answering,
    Contestant,
    JudgedRows,
    Progress,
    Workspace,
    kept_answers,
    let_answer,
)
from cwdpo.evaluation.judging.verdicts import PairJudge, Question
from cwdpo.evaluation.judging.win_rates import OrderReport, WinRate, both_orders, order_report, strengths, win_rate
from cwdpo.records import append_jsonl, read_jsonl

MOST_FAILED = 0.1
"""Share of comparisons without a verdict above which there is no result."""


class _Asked(NamedTuple):
    """One question: of which pair and row, whether the pair's first model is shown first, and its key."""

    pair: int
    row: int
    swapped: bool
    key: str


@dataclass
class Plan:
    """What has to be asked, and what is known already."""

    pairs: list[tuple[int, int]]
    same: NDArray[np.bool_]
    """``(rows, pairs)`` whether both gave the same answer, so that nobody needs to be asked."""

    verdicts: Values
    """``(2, rows, pairs)`` score of the pair's first model, shown first and shown second; nan where unknown."""

    missing: list[_Asked]

    known: int
    """Verdicts that an earlier start kept."""

    def record(self, asked: _Asked, score: float) -> None:
        """Enter the score of the answer that was shown first."""
        self.verdicts[int(asked.swapped), asked.row, asked.pair] = 1 - score if asked.swapped else score


def plan(
    judged: JudgedRows, names: Sequence[str], answers: Sequence[Sequence[str]], judge: PairJudge, kept: Path
) -> Plan:
    """Compare with what an earlier start kept: a verdict counts if judge, row, order and both answers are the same."""
    pairs = list(itertools.combinations(range(len(names)), 2))
    known = {
        line["key"]: float(line["verdict"])
        for line in read_jsonl(kept).objects
        if isinstance(line.get("key"), str) and isinstance(line.get("verdict"), int | float)
    }
    shape = (len(judged.rows), len(pairs))
    found = Plan(pairs, np.zeros(shape, dtype=bool), np.full((2, *shape), np.nan), [], 0)
    identity = judge.identity
    for pair, (i, j) in enumerate(pairs):
        for row, name in enumerate(judged.ids):
            if answers[i][row] == answers[j][row]:
                found.same[row, pair], found.verdicts[:, row, pair] = True, 0.5
                continue
            for swapped in (False, True):
                first, second = (j, i) if swapped else (i, j)
                shown = [name, names[first], names[second], answers[first][row], answers[second][row]]
                key = xxhash.xxh3_128_hexdigest(json.dumps([identity, *shown]).encode())
                asked = _Asked(pair, row, swapped, key)
                if key in known:
                    found.known += 1
                    found.record(asked, known[key])
                else:
                    found.missing.append(asked)
    return found


class CallsNeeded(NamedTuple):
    """Verdicts that a comparison still needs."""

    number: int
    is_exact: bool
    """Else the most there can be: some answers are not there yet, and equal ones need no verdict."""


def calls_needed(
    judged: JudgedRows, competing: Sequence[Contestant], judge: PairJudge, space: Workspace
) -> CallsNeeded:
    """How many verdicts are missing."""
    answers = [found for one in competing if (found := kept_answers(one, judged.ids, space)) is not None]
    if len(answers) < len(competing):
        return CallsNeeded(len(judged.rows) * len(competing) * (len(competing) - 1), False)
    names = [one.name for one in competing]
    return CallsNeeded(len(plan(judged, names, answers, judge, space.verdicts).missing), True)


class Failures(NamedTuple):
    """Questions without a verdict, in this start."""

    no_reply: int
    unreadable: int


def ask(
    what: Plan,
    judged: JudgedRows,
    names: Sequence[str],
    answers: Sequence[Sequence[str]],
    judge: PairJudge,
    kept: Path,
    progress: Progress,
) -> Failures:
    """Ask what is missing; every verdict is on disk as soon as it is there, and in the plan. A UserError where the
    judge fails as a whole."""
    failed = Counter[str]()

    def question(asked: _Asked) -> Question:
        i, j = what.pairs[asked.pair]
        one, other = answers[i][asked.row], answers[j][asked.row]
        return Question(judged.rows[asked.row], *((other, one) if asked.swapped else (one, other)))

    missing = what.missing
    verdicts = judge.verdicts([question(asked) for asked in missing])
    try:
        for done, (number, score) in enumerate(verdicts, start=1):
            if score is None or math.isnan(score):
                failed["no_reply" if score is None else "unreadable"] += 1
            else:
                append_jsonl(kept, [_line(missing[number], what, judged, names, score)])
                what.record(missing[number], score)
            progress("verdicts", done, len(missing))
    except UserError as error:
        raise UserError(f"{error} Verdicts so far are kept in {kept}; run the same command again to go on.") from error
    return Failures(failed["no_reply"], failed["unreadable"])


def _line(asked: _Asked, what: Plan, judged: JudgedRows, names: Sequence[str], score: float) -> dict[str, object]:
    one, other = (names[model] for model in what.pairs[asked.pair])
    first, second = (other, one) if asked.swapped else (one, other)
    return {"key": asked.key, "id": judged.ids[asked.row], "first": first, "second": second, "verdict": score}


def refuse_failures(what: Plan, failures: Failures, kept: Path) -> None:
    """A UserError where more than a tenth of the comparisons have no verdict in both orders."""
    left_out = int(np.isnan(what.verdicts).any(axis=0).sum())
    if left_out > MOST_FAILED * what.same.size:
        unreadable = (
            f", {failures.unreadable} with one that names neither A, B nor a tie" if failures.unreadable else ""
        )
        raise UserError(
            f"{left_out} of {what.same.size} comparisons have no verdict, more than a tenth: {failures.no_reply} "
            f"questions got no reply{unreadable}. Other verdicts are kept in {kept}; correct the server or name "
            "another --judge, and run the same command again to ask for the missing ones."
        )


@dataclass(frozen=True)
class PairResult:
    """Model ``first`` against model ``second``."""

    first: str
    second: str
    rows: int
    """With a verdict in both orders."""

    won: int
    tied: int
    lost: int
    inconsistent: int
    """Of the ties: the verdict changed with the order."""

    same_answer: int
    """Of the ties: both models said the same, and nobody was asked."""

    left_out: int
    """Rows without a verdict in both orders."""

    mean_characters: tuple[float, float]
    """Mean length of the two models' answers to the judged rows."""

    win_rate: WinRate
    order: OrderReport
    """Over the rows that the judge was asked about."""


@dataclass(frozen=True)
class JudgeResult:
    """What a comparison found."""

    pairs: list[PairResult]
    strengths: dict[str, Estimate] | None
    """Bradley-Terry, nats, mean 0; for more than two models."""

    why_no_strengths: str | None
    cost: Mapping[str, float | None] = field(default_factory=dict)
    """What a server was asked in all, and its ``price``; no more than that, and null, for other judges."""


def summarise(what: Plan, names: Sequence[str], answers: Sequence[Sequence[str]], *, seed: int = 0) -> JudgeResult:
    """All statistics of the verdicts; a UserError where a pair has none."""
    scores = both_orders(what.verdicts[0], what.verdicts[1])
    lengths = np.array([[len(text) for text in of_model] for of_model in answers], dtype=np.float64)
    pairs = [_pair_result(what, scores[:, pair], lengths, pair, names, seed) for pair in range(len(what.pairs))]
    placed: dict[str, Estimate] | None = None
    why = None
    if len(names) > 2:
        try:
            placed = dict(zip(names, strengths(scores, what.pairs, names, seed=seed), strict=True))
        except DataError as error:  # the pairs' own numbers are good, so this is reported beside them
            why = str(error)
    return JudgeResult(pairs, placed, why)


def compare_models(
    judged: JudgedRows,
    competing: Sequence[Contestant],
    answering: Answering,
    judge: PairJudge,
    space: Workspace,
    *,
    most_calls: int,
    price: tuple[float, float] | None,
    progress: Progress,
    say: Callable[[str], None],
) -> JudgeResult:
    """Have the models answer and the judge compare, going on from what is kept, and say who won.

    ``price`` is of a million prompt and completion tokens of a server; ``say`` gets sentences on the way.

    Raises:
        UserError: it would take more than ``most_calls`` of a server, or too many questions got no verdict.
    """
    names = [one.name for one in competing]
    answers = _answers(judged, competing, answering, space, progress, say)
    work = plan(judged, names, answers, judge, space.verdicts)
    if judge.costs:
        say(f"{len(work.missing)} calls of the server; {work.known} verdicts are there already.")
        _refuse_many_calls(len(work.missing), most_calls)
    try:
        failures = ask(work, judged, names, answers, judge, space.verdicts, progress)
    finally:  # also when the server or the user ends the work
        if used := judge.usage():
            append_jsonl(space.verdicts, [{"usage": used}])
    refuse_failures(work, failures, space.verdicts)
    result = summarise(work, names, answers, seed=answering.seed)
    used = usage_so_far(space.verdicts) if judge.costs else {}
    total = None if price is None else (price[0] * used["prompt_tokens"] + price[1] * used["completion_tokens"]) / 1e6
    return replace(result, cost={**used, "price": total})


def _answers(
    judged: JudgedRows,
    competing: Sequence[Contestant],
    answering: Answering,
    space: Workspace,
    progress: Progress,
    say: Callable[[str], None],
) -> list[list[str]]:
    """The answers of all, one model in memory at a time."""
    # files first: a missing answer is found before a model has worked for an hour
    known = [kept_answers(one, judged.ids, space) for one in competing]
    answers = []
    for one, kept in zip(competing, known, strict=True):
        cut = 0
        if kept is None:
            kept, cut = let_answer(one, judged, space, answering, progress)
        if cut:
            say(f"{cut} answers of {one.name} were cut; raise --max-new-tokens.")
        answers.append(kept)
    return answers


def _refuse_many_calls(missing: int, most: int) -> None:
    if missing > most:
        raise UserError(
            f"this takes {missing} calls, more than --max-calls {most}. Allow them with --max-calls {missing}, or "
            "compare fewer rows with --rows. The models' answers are kept."
        )


def _pair_result(what: Plan, scores: Values, lengths: Values, pair: int, names: Sequence[str], seed: int) -> PairResult:
    i, j = what.pairs[pair]
    there = ~np.isnan(scores)
    if not there.any():
        raise UserError(f"no row has a verdict on {names[i]} and {names[j]}. Look at the judge, and run it again.")
    known = scores[there]
    one_way, other_way = what.verdicts[:, ~what.same[:, pair], pair]
    tied, same = int((known == 0.5).sum()), int(what.same[:, pair].sum())
    both = ~(np.isnan(one_way) | np.isnan(other_way))
    return PairResult(
        first=names[i],
        second=names[j],
        rows=len(known),
        won=int((known == 1).sum()),
        tied=tied,
        lost=int((known == 0).sum()),
        inconsistent=int((one_way[both] != other_way[both]).sum()),
        same_answer=same,
        left_out=int((~there).sum()),
        mean_characters=(float(lengths[i, there].mean()), float(lengths[j, there].mean())),
        win_rate=win_rate(known, lengths[i, there] - lengths[j, there], seed=seed),
        order=order_report(one_way, other_way),
    )


def result_json(result: JudgeResult) -> dict[str, Any]:
    """The result as JSON objects; an estimate is ``{"value", "low", "high", "n"}``."""
    found: dict[str, Any] = _plain(
        {name: getattr(result, name) for name in ("pairs", "strengths", "why_no_strengths", "cost")}
    )
    return found


def usage_so_far(kept: Path) -> dict[str, int]:
    """What all starts have used of the server, those before included."""
    total = dict.fromkeys(("requests", "retries", "prompt_tokens", "completion_tokens"), 0)
    for line in read_jsonl(kept).objects:
        used = line.get("usage")
        if isinstance(used, dict):
            total = {name: number + int(used.get(name) or 0) for name, number in total.items()}
    return total


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
