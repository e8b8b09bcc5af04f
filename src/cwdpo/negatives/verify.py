"""Verification: an answer that is right by accident must not become a negative; judges say which are right."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from cwdpo.config.functions import load_function
from cwdpo.config.limits import is_server, server_and_model
from cwdpo.data.rows import Row
from cwdpo.generation import Generated
from cwdpo.negatives.filtering import Reason, Rules, filter_negatives, normalised
from cwdpo.negatives.server import Endpoint, EndpointError, messages_of, parse_json, text_message

CUT, EMPTY, JUDGED_RIGHT, NOT_JUDGED = "cut", "empty", "judged_right", "not_judged"

Judge: TypeAlias = Callable[[Sequence[Row], Sequence[str]], Sequence[bool | None]]
"""Says of each answer whether it is right for its row, None where it is not sure: ``judge(rows, answers)``."""

RightAnswersOf: TypeAlias = Callable[[Row], Sequence[str]]
"""The right answers of a row, its own first; see :class:`cwdpo.negatives.filtering.RightAnswers`."""


@runtime_checkable
class Informed(Protocol):
    """A judge that wants to know every right answer of a prompt, and not the row's own alone."""

    def knowing(self, right_answers: RightAnswersOf) -> Judge:
        """The judge, with the right answers of a row's prompt and images."""


def verify(
    rows: Sequence[Row],
    answers: Sequence[Sequence[Generated]],
    *,
    right_answers: RightAnswersOf,
    rules: Rules | None = None,
    judge: Judge | None = None,
) -> list[list[Reason]]:
    """Why each sampled answer of each row may not be a negative; None where it may.

    Reasons are ``empty``, ``cut``, those of :func:`cwdpo.negatives.filtering.filter_negatives`, and of the judge, asked
    about what passed all else, ``judged_right`` or ``not_judged`` (not sure: what may be right is not a negative).
    """
    reasons = [_by_text(found, right_answers(row), rules or Rules()) for row, found in zip(rows, answers, strict=True)]
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
    """The judge of this name: ``module:function``, ``same_words``, or a server as ``URL`` or ``URL#MODEL``."""
    if is_server(name):
        url, model = server_and_model(name)
        return EndpointJudge(Endpoint(url, model=model))
    if name == "same_words":
        return SameWords()
    advice = (
        "Write `module:function`, and put the module's directory in PYTHONPATH; same_words and a server such as "
        "http://127.0.0.1:8000/v1 need no module."
    )
    return cast(Judge, load_function(name, setting="negatives.judge", advice=advice, called="rows, answers"))


class SameWords:
    """Judges by words alone: right is what has the content words of a right answer, in any order, be it
    the opposite ("the cat chases the dog"). So it may drop hard negatives, but lets no reordered right answer pass."""

    def __init__(self, right_answers: RightAnswersOf = lambda row: [row.chosen]) -> None:
        self._right_answers = right_answers

    def knowing(self, right_answers: RightAnswersOf) -> "SameWords":
        return SameWords(right_answers)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[bool | None]:
        pairs = zip(rows, answers, strict=True)
        return [any(same_words(answer, right) for right in self._right_answers(row)) for row, answer in pairs]


def same_words(one: str, other: str) -> bool:
    """Whether two texts have the same content words, each as often, in any order.

    Case, punctuation, articles and other words without content do not count, and numbers up to ten are the same in
    words and in digits.

    Example:
        >>> same_words("There are two red cubes.", "2 cubes that are red")
        True
        >>> same_words("a red cube", "no red cube")
        False
    """
    return _content(one) == _content(other)


PROMPT = """\
The assistant's answer above is right. Judge another answer to the same question: {answer}
{others}\
Is it right too? It is right if everything that it says is true (of the image, where there is one) and it answers the \
question; it may use other words, or say more or less than the answer above. It is wrong if anything in it is false or \
if it does not answer the question.
Answer in JSON: {{"verdict": "yes" if it is right, "no" if it is wrong, "unsure" if you \
"""
PROMPT += "cannot tell}}."  # codespell:ignore tell
"""What the server is asked, after the conversation with its right answer."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["yes", "no", "unsure"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}


class EndpointJudge:
    """Asks a server, whose model may think first and must see images if the rows have any: yes, no, or not sure."""

    def __init__(
        self, endpoint: Endpoint, right_answers: RightAnswersOf = lambda row: [row.chosen], *, max_tokens: int = 512
    ) -> None:
        self.endpoint, self.max_tokens, self._right_answers = endpoint, max_tokens, right_answers

    def knowing(self, right_answers: RightAnswersOf) -> "EndpointJudge":
        return EndpointJudge(self.endpoint, right_answers, max_tokens=self.max_tokens)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[bool | None]:
        """None where the server gave no answer, or one that says neither yes nor no."""
        verdicts: list[bool | None] = [None] * len(answers)
        unanswered = 0
        for place, text in self.endpoint.map(lambda pair: self._ask(*pair), zip(rows, answers, strict=True)):
            verdicts[place] = None if text is None else parse_verdict(text)
            unanswered += text is None
        if answers and unanswered == len(answers):
            raise EndpointError(f"the judge {self.endpoint.url} answered for none of {len(answers)} answers.")
        return verdicts

    def _ask(self, row: Row, answer: str) -> str:
        own, *others = self._right_answers(row)
        quoted = [json.dumps(text, ensure_ascii=False) for text in others]
        also = f"Other right answers are: {', '.join(quoted)}.\n" if quoted else ""
        question = PROMPT.format(answer=json.dumps(answer, ensure_ascii=False), others=also)
        asked = [*messages_of(row), text_message("assistant", own), text_message("user", question)]
        (reply, *_) = self.endpoint.chat(asked, temperature=0.0, max_tokens=self.max_tokens, seed=0, schema=SCHEMA)
        return reply.text


def parse_verdict(text: str) -> bool | None:
    """Yes or no from what a server wrote; None where it is neither.

    Example:
        >>> parse_verdict('{"verdict": "yes"}'), parse_verdict("No."), parse_verdict('{"verdict": "unsure"}')
        (True, False, None)
    """
    found = parse_json(text)
    said = text if found is None else str(found.get("verdict"))
    return {"yes": True, "no": False, "true": True, "false": False}.get(re.sub(r"[^a-z]", "", said.lower()))


_LITTLE_WORDS = """a an the is are was were be been being am it its he she they there here this that these those which
who and of has have had do does did"""
_WITHOUT_CONTENT = frozenset(_LITTLE_WORDS.split())
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}


def _content(text: str) -> Counter[str]:
    words = [_DIGITS.get(word, word) for word in normalised(text).split()]
    return Counter([word for word in words if word not in _WITHOUT_CONTENT] or words)


def _by_text(answers: Sequence[Generated], right: Sequence[str], rules: Rules) -> list[Reason]:
    found = iter(filter_negatives(right, [answer.text for answer in answers if answer.text and answer.ended], rules))
    return [EMPTY if not answer.text else next(found) if answer.ended else CUT for answer in answers]
