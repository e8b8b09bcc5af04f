"""What a judge is asked and what it says, whoever it is.

A verdict is the score of the first answer: 1 it is better, 0 the second is, 0.5 a tie.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from cwdpo.data.rows import Row

TIE, UNREADABLE = 0.5, math.nan


class Question(NamedTuple):
    """Two answers to one row, in the order in which the judge sees them."""

    row: Row
    first: str
    second: str


class PairJudge(Protocol):
    """Gives verdicts on pairs of answers."""

    @property
    def identity(self) -> str:
        """What verdicts follow from beside the question: other text means that kept verdicts are not this judge's."""
        ...

    @property
    def costs(self) -> bool:
        """Whether a verdict costs a request to a server."""
        ...

    def usage(self) -> dict[str, int]:
        """What was used of a server so far, by name; empty without one."""
        ...

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[int, float | None]]:
        """The number of each question with its verdict, as they come; nan for a reply that names neither answer nor a
        tie, None where there was no reply. A UserError ends it; what was given before is good."""
        ...
