"""Verification: an answer that is right by accident must not become a negative."""

import importlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import xxhash

from cwdpo.config.limits import is_server, server_and_model
from cwdpo.data.rows import ImageSource, Row
from cwdpo.errors import ConfigError
from cwdpo.generation import Generated
from cwdpo.negatives.filtering import Rules, filter_negatives, normalised
from cwdpo.negatives.gentle.server import parse_json
from cwdpo.negatives.server import Endpoint, EndpointError, messages_of


class RightAnswers:
    """Every right answer that a data set gives for a prompt, also those that stand in other rows of the same prompt."""

    def __init__(self, rows: Iterable[Row], also: Iterable[Row] = ()) -> None:
        """Read the rows.

        Args:
            rows: those that negatives are made for.
            also: others of the same data, such as another stage's.
        """
        self._of: dict[Hashable, dict[str, None]] = {}
        for row in itertools.chain(rows, also):
            self._of.setdefault(_question(row), {}).update(dict.fromkeys(_right_in(row)))

    def __call__(self, row: Row) -> list[str]:
        """The right answers to a row's prompt and images, its own first; paraphrases count."""
        return list(dict.fromkeys([*_right_in(row), *self._of.get(_question(row), ())]))


def _right_in(row: Row) -> list[str]:
    """The chosen answer, and its longer and shorter paraphrase."""
    return [text for text in (row.chosen, row.longer, row.shorter) if text]


def _question(row: Row) -> Hashable:
    return row.prompt, tuple(_identity(image) for image in row.images)


def _identity(image: ImageSource) -> Hashable:
    if isinstance(image, bytes):
        return xxhash.xxh3_128_hexdigest(image)
    return str(image) if not hasattr(image, "tobytes") else xxhash.xxh3_128_hexdigest(cast(Any, image).tobytes())


Judge: TypeAlias = Callable[[Sequence[Row], Sequence[str]], Sequence[bool | None]]
"""Says of each answer whether it is right for its row, or None where it cannot tell: ``judge(rows, answers)``."""

RightAnswersOf: TypeAlias = Callable[[Row], Sequence[str]]


@runtime_checkable
class Informed(Protocol):
    """A judge that wants to know every right answer of a prompt, and not the row's own alone."""

    def knowing(self, right_answers: RightAnswersOf) -> Judge:
        """The judge, with the right answers of a row's prompt and images."""
        ...


PROMPT = """\
The assistant's answer above is right. Judge another answer to the same question: {answer}
{others}\
Is it right too? It is right if everything that it says is true (of the image, where there is one) and it answers the \
question; it may use other words, or say more or less than the answer above. It is wrong if anything in it is false or \
if it does not answer the question.
Answer in JSON: {{"verdict": "yes" if it is right, "no" if it is wrong, "unsure" if you cannot tell}}."""
"""What the server is asked, after the conversation with its right answer."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"verdict": {"type": "string", "enum": ["yes", "no", "unsure"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}

_VERDICTS = {"yes": True, "no": False, "true": True, "false": False}
_EMPTY = """a an the is are was were be been being am it its he she they there here this that these those which who and
of has have had do does did"""
_EMPTY_WORDS = frozenset(_EMPTY.split())
_NUMBERS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
_NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}


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


class SameWords:
    """Judges by words alone: right is what has the content words of a right answer, in any order.

    It takes a picture described the other way round for right as well as what says the opposite in the same words ("the
    cat chases the dog"), so it may drop hard negatives, but a right answer in another order never passes.
    """

    def __init__(self, right_answers: RightAnswersOf | None = None) -> None:
        self._right_answers: RightAnswersOf = right_answers or (lambda row: [row.chosen])

    def knowing(self, right_answers: RightAnswersOf) -> "SameWords":
        """See :class:`Informed`."""
        return SameWords(right_answers)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[bool | None]:
        """See :data:`Judge`."""
        return [
            any(same_words(answer, right) for right in self._right_answers(row))
            for row, answer in zip(rows, answers, strict=True)
        ]


class EndpointJudge:
    """Asks a server about each answer: yes, no, or neither, where nobody can tell."""

    def __init__(
        self, endpoint: Endpoint, right_answers: RightAnswersOf | None = None, *, max_tokens: int = 512
    ) -> None:
        """Nothing is asked yet.

        Args:
            endpoint: the server; its model must see images if the rows have any.
            right_answers: of a row, its own first.
            max_tokens: room for a model that thinks before it answers.
        """
        self.endpoint, self.max_tokens = endpoint, max_tokens
        self._right_answers: RightAnswersOf = right_answers or (lambda row: [row.chosen])

    def knowing(self, right_answers: RightAnswersOf) -> "EndpointJudge":
        """See :class:`Informed`."""
        return EndpointJudge(self.endpoint, right_answers, max_tokens=self.max_tokens)

    def __call__(self, rows: Sequence[Row], answers: Sequence[str]) -> list[bool | None]:
        """See :data:`Judge`. None where the server gave no answer, or one that says neither yes nor no.

        Raises:
            EndpointError: it answered for none, or is dead.
        """
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
        (reply, *_) = self.endpoint.chat(
            [*messages_of(row), _message("assistant", own), _message("user", question)],
            temperature=0.0,
            max_tokens=self.max_tokens,
            seed=0,
            schema=SCHEMA,
        )
        return reply.text


def parse_verdict(text: str) -> bool | None:
    """Yes or no from what a server wrote; None where it is neither.

    Example:
        >>> parse_verdict('{"verdict": "yes"}'), parse_verdict("No."), parse_verdict('{"verdict": "unsure"}')
        (True, False, None)
    """
    found = parse_json(text)
    said = text if found is None else str(found.get("verdict"))
    return _VERDICTS.get(re.sub(r"[^a-z]", "", said.lower()))


def _content(text: str) -> Counter[str]:
    words = [_NUMBERS.get(word, word) for word in normalised(text).split()]
    return Counter([word for word in words if word not in _EMPTY_WORDS] or words)


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


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
