"""Who judges which of two answers is better: a rule, a function of the user, or a vision-language model on a server.

Every judge is asked about both orders, and sees no names of models.
"""

import difflib
import inspect
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import xxhash

from cwdpo.config.functions import load_function, name_for_file
from cwdpo.config.limits import is_server, server_and_model
from cwdpo.config.secrets import check_url
from cwdpo.data.rows import Row
from cwdpo.errors import ConfigError, UserError
from cwdpo.evaluation.judging.verdicts import TIE, PairJudge, Question
from cwdpo.negatives.filtering import RightAnswers, ngram_overlap, normalised

FORMS = "exact, same_words, overlap, module:function, or a server as http://127.0.0.1:8000/v1#MODEL"

Compare: TypeAlias = Callable[[Row, str, str], float]
"""The user's function: of a row, the first answer and the second, a number > 0 where the first is better, < 0 where the
second is, 0 for a tie. Booleans and None are refused."""


def load_pair_judge(name: str, rows: Sequence[Row], *, concurrency: int = 8) -> PairJudge:
    """The judge of this name, one of :data:`FORMS`; ``rows`` are those of the data, whose answers are the right ones.
    Nothing is sent to a server yet."""
    if is_server(name):
        check_url(server_and_model(name)[0], "--judge")
        from cwdpo.evaluation.judging.server import ServerJudge  # its client loads torch, which rules do not need

        return ServerJudge.named(name, RightAnswers(rows), concurrency=concurrency)
    if name in RULES:
        return RuleJudge(name, RightAnswers(rows))
    is_name = name.count(":") == 1 and all(part.isidentifier() for part in name.replace(":", ".").split("."))
    if not is_name and not name_for_file(name):
        near = difflib.get_close_matches(name.lower(), RULES, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--judge is {name!r}, which is not a judge. {meant}Write {FORMS}.")
    advice = "Write `module:function`, and put the module's directory in PYTHONPATH."
    compare = load_function(name, setting="--judge", advice=advice, called="row, first_answer, second_answer")
    return FunctionJudge(name, cast(Compare, compare))


def _exact(answer: str, right: Sequence[str]) -> float:
    form = normalised(answer)
    return float(any(form == normalised(text) for text in right))


def _same_words(answer: str, right: Sequence[str]) -> float:
    from cwdpo.negatives.verify import same_words  # loads torch, which the other rules do not need

    return float(any(same_words(answer, text) for text in right))


def _overlap(answer: str, right: Sequence[str]) -> float:
    return max(ngram_overlap(answer, text, longest=1) for text in right)


RULES: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": _exact,
    "same_words": _same_words,
    "overlap": _overlap,
}
"""What a rule gives an answer beside the right ones; the higher number wins.

- ``exact``: 1 for a right answer, case, punctuation and articles aside, else 0;
- ``same_words``: 1 for the content words of a right answer in any order;
- ``overlap``: F1 of words with the closest right answer.
"""


@dataclass(frozen=True)
class RuleJudge:
    """Compares what a rule of :data:`RULES` gives each answer."""

    name: str
    right_answers: RightAnswers
    costs = False

    @property
    def identity(self) -> str:
        return self.name

    def usage(self) -> dict[str, int]:
        return {}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, float | None]]:
        """Yield the number of each question with its verdict."""
        rule = RULES[self.name]
        for number, (row, first, second) in enumerate(questions):
            right = self.right_answers(row)
            yield number, _from_sign(rule(first, right) - rule(second, right))


@dataclass(frozen=True)
class FunctionJudge:
    """Asks the user's function."""

    name: str
    function: Compare
    costs = False

    @property
    def identity(self) -> str:
        """The name and the text of the function, so that a corrected one is asked again."""
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = ""
        return f"{self.name} {xxhash.xxh3_128_hexdigest(source.encode())}"

    def usage(self) -> dict[str, int]:
        return {}

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, float | None]]:
        """Yield the number of each question with its verdict; a UserError where the function fails."""
        for number, (row, first, second) in enumerate(questions):
            try:
                found = self.function(row, first, second)
            except Exception as error:
                raise UserError(
                    f"{row.source}: the judge {self.name} failed: {type(error).__name__}: {error}. Fix it."
                ) from error
            if isinstance(found, bool) or not isinstance(found, numbers.Real) or math.isnan(found):
                raise UserError(
                    f"{row.source}: the judge {self.name} returned {found!r}. Return a number: above 0 if the first "
                    "answer is better, below 0 if the second is, 0 for a tie."
                )
            yield number, _from_sign(float(found))


def _from_sign(number: float) -> float:
    return TIE if number == 0 else float(number > 0)
