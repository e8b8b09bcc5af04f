"""Judges that come with the package: a rule on words, and a question to a server that sees the picture."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from cwdpo.data.rows import Row
from cwdpo.negatives.asking import parse_json
from cwdpo.negatives.conversation import messages_of
from cwdpo.negatives.endpoint import Endpoint
from cwdpo.negatives.filtering import normalised
from cwdpo.negatives.refusals import EndpointError

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
