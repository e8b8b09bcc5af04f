"""Tokens with their log-probs as classes of the page: a shade for how likely, a mark for what changed."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cwdpo.report.series import finite

PROBABILITIES = (0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01)
"""Below each of these a token has the next stronger shade."""

CHANGES = (0.05, 0.25, 1.0, 3.0)
"""Nats; a change of so much or more has the next stronger mark."""


@dataclass(frozen=True)
class Token:
    """A token as it is shown."""

    text: str
    end: float
    """Log-prob when the stage ended, nats."""

    change: float | None
    """Since the stage began."""

    @property
    def classes(self) -> str:
        """Shade, then mark."""
        return f"s{shade(self.end)}" + (f" {mark(self.change)}" if self.change is not None else "")

    @property
    def title(self) -> str:
        """What a pointer resting on it reads."""
        percent = 100 * math.exp(min(self.end, 0.0))
        likely = f"{percent:.0f} %" if percent >= 1 else f"{percent:.1g} %"
        change = "" if self.change is None else f", {self.change:+.2f} since the stage began"
        return f"log-prob {self.end:.2f} ({likely}){change}"


def read_tokens(entry: Mapping[str, Any]) -> list[Token] | None:
    """Tokens of one answer; none where it was not measured, None where its lists do not fit together."""
    tokens, end, start = (entry.get(key) for key in ("tokens", "end", "start"))
    if tokens is None or end is None:
        return []
    ends, starts = _numbers(end), _numbers(start) if start is not None else None
    if not isinstance(tokens, list) or ends is None or len(tokens) != len(ends):
        return None
    if start is not None and (starts is None or len(starts) != len(ends)):
        return None
    changes: Sequence[float | None] = [None] * len(ends)
    if starts is not None:
        changes = [now - before for now, before in zip(ends, starts, strict=True)]
    return [Token(visible(str(t)), now, change) for t, now, change in zip(tokens, ends, changes, strict=True)]


def shade(logprob: float) -> int:
    """Class of a log-prob: 0 for nearly certain, 8 for under 1 %.

    Example:
        >>> [shade(math.log(p)) for p in (0.99, 0.93, 0.6, 0.02, 0.001)]
        [0, 1, 3, 7, 8]
    """
    return sum(math.exp(min(logprob, 0.0)) < least for least in PROBABILITIES)


def mark(change: float) -> str:
    """Class of a change: ``f4`` to ``f1`` fell, ``r1`` to ``r4`` rose, ``r0`` stayed.

    Example:
        >>> [mark(change) for change in (-5.0, -0.1, 0.01, 0.3)]
        ['f4', 'f1', 'r0', 'r2']
    """
    strength = bisect_right(CHANGES, abs(change))
    return f"{'f' if change < 0 and strength else 'r'}{strength}"


def shade_labels() -> list[tuple[str, str]]:
    """Class and meaning of every shade, for the legend."""
    percent = [f"{100 * p:.0f}" for p in PROBABILITIES]
    between = [f"{low} to {high} %" for high, low in pairwise(percent)]
    texts = [f"{percent[0]} % or more", *between, f"under {percent[-1]} %"]
    return [(f"s{level}", text) for level, text in enumerate(texts)]


def change_labels() -> list[tuple[str, str]]:
    """Class and meaning of every mark, from the strongest fall to the strongest rise."""
    known = [f"{change:g}" for change in CHANGES]
    sizes = [*(f"{a} to {b}" for a, b in pairwise(known)), f"{known[-1]} or more"]
    falls = [(f"f{i}", f"fell {size}") for i, size in enumerate(sizes, start=1)]
    rises = [(f"r{i}", f"rose {size}") for i, size in enumerate(sizes, start=1)]
    return [*reversed(falls), ("r0", f"moved under {known[0]}"), *rises]


def visible(text: str) -> str:
    """A token's text such that it can be seen: a line break has a sign of its own, and so has nothing at all.

    Example:
        >>> visible("a\\n"), visible(" "), visible("")
        ('a↵\\n', '␣', '∅')
    """
    if not text:
        return "∅"
    return "␣" * len(text) if not text.strip(" ") else text.replace("\n", "↵\n")


def _numbers(value: object) -> list[float] | None:
    """A list of finite numbers, else None."""
    if not isinstance(value, list):
        return None
    numbers = [finite(item) for item in value]
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None
