"""Verification: an answer that is right by accident must not become a negative."""

import importlib
from collections.abc import Callable, Sequence
from typing import cast

from cwdpo.config.judges import is_server, server_and_model
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.negatives.endpoint import Endpoint
from cwdpo.negatives.filtering import Rules, filter_negatives
from cwdpo.negatives.judges import EndpointJudge, Informed, SameWords
from cwdpo.negatives.judges import Judge as Judge  # the word that callers of `verify` need
from cwdpo.negatives.right_answers import RightAnswers as RightAnswers  # what callers of `verify` need beside it

CUT, EMPTY, JUDGED_RIGHT, NOT_JUDGED = "cut", "empty", "judged_right", "not_judged"


def verify(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Generated]],
    *,
    right_answers: Callable[[Row], Sequence[str]],
    rules: Rules | None = None,
    judge: Judge | None = None,
) -> list[list[str | None]]:
    """Why each sampled answer may not be a negative; None where it may.

    Args:
        rows: the prompts.
        answers: some for each row.
        right_answers: of a row, see :class:`RightAnswers`.
        rules: see :class:`cwdpo.negatives.filtering.Rules`; exact and normalised matches, and repetitions, are always
            refused.
        judge: asked of what passed everything else.

    Returns:
        For each answer of each row None or a reason: ``empty``, ``cut``, ``judged_right``, ``not_judged`` (the judge
        could not tell, and what may be right is no negative) or one of ``filtering``'s.

    Raises:
        ValueError: the judge did not answer for every answer.
    """
    reasons = [_reasons(row, found, right_answers, rules or Rules()) for row, found in zip(rows, answers, strict=True)]
    if judge is not None:
        informed = judge.knowing(right_answers) if isinstance(judge, Informed) else judge
        passed = [(r, a) for r, of_row in enumerate(reasons) for a, reason in enumerate(of_row) if reason is None]
        verdicts = informed([rows[r] for r, _ in passed], [answers[r][a].text for r, a in passed]) if passed else []
        if len(verdicts) != len(passed):
            raise ValueError(f"the judge was asked about {len(passed)} answers and gave {len(verdicts)} verdicts")
        for (r, a), is_right in zip(passed, verdicts, strict=True):
            if is_right is None or is_right:
                reasons[r][a] = NOT_JUDGED if is_right is None else JUDGED_RIGHT
    return reasons


def load_judge(name: str) -> Judge:
    """The judge of this name: ``module:function``, ``same_words``, or a server as ``URL`` or ``URL#MODEL``.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    if is_server(name):
        url, model = server_and_model(name)
        return EndpointJudge(Endpoint(url, model=model))
    if name == "same_words":
        return SameWords()
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"negatives.judge is {name}, which cannot be imported ({error}). Write `module:function`, and put the "
            "module's directory in PYTHONPATH; same_words and a server such as http://127.0.0.1:8000/v1 need no module."
        ) from error
    if not callable(found):
        raise ConfigError(f"negatives.judge is {name}, which is a {type(found).__name__} and no function.")
    return cast(Judge, found)


def _reasons(
    row: Row, answers: Sequence[Generated], right_answers: Callable[[Row], Sequence[str]], rules: Rules
) -> list[str | None]:
    reasons: list[str | None] = [_unusable(answer) for answer in answers]
    usable = [place for place, reason in enumerate(reasons) if reason is None]
    found = filter_negatives(right_answers(row), [answers[place].text for place in usable], rules)
    for place, reason in found.dropped:
        reasons[usable[place]] = reason
    return reasons


def _unusable(answer: Generated) -> str | None:
    if not answer.text:
        return EMPTY
    return None if answer.ended else CUT
