"""What a setting's value may be, declared beside the field that holds it: ``Annotated[float, limit(above=0, ...)]``.

A validator gives the value back as it is, or raises a ``ValueError`` that goes on after the setting's name: ``is 3, but
must be < 1. ...``. So one limit serves a recipe, the command line and Python, which have different names for a setting.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict

from cwdpo.config.functions import name_for_file
from cwdpo.config.secrets import check_url
from cwdpo.errors import ConfigError

# strict: a quoted "16" or a `yes` where a number belongs is a slip of the pen, not a number
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Fraction: TypeAlias = float | Sequence[Sequence[float]]
"""A share, or points ``[progress, share]`` with straight lines between them; progress goes from 0 to 1 over the run."""

RULES = ("same_words",)
"""Judges that need nothing but the texts."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Limit(AfterValidator):
    """The validator of :func:`limit`, with its bounds for those who describe a setting."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    advice: str = ""
    """A sentence that says what to write instead."""

    def __str__(self) -> str:
        """``> 0 and < 1``."""
        bounds = {"> ": self.above, ">= ": self.at_least, "< ": self.below, "<= ": self.at_most}
        return " and ".join(f"{sign}{bound:g}" for sign, bound in bounds.items() if bound is not None)

    def allows(self, value: float) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.below is None or value < self.below)
            and (self.at_most is None or value <= self.at_most)
        )


def limit(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    advice: str,
) -> Limit:
    """Validator of a number; null and texts pass where the field allows them. ``advice`` says what to write instead."""

    def check(value: _Value) -> _Value:
        if isinstance(value, int | float) and not found.allows(value):
            raise ValueError(f"is {value}, but must be {found}. {advice}")
        return value

    found = Limit(check, above=above, at_least=at_least, below=below, at_most=at_most, advice=advice)
    return found


class Called(NamedTuple):
    """What a message calls the values of a setting, where their type alone says too little."""

    what: str


ROWS = Called("the path of a file of rows, or null")
"""Of a setting that may name one file."""


def not_empty(advice: str) -> AfterValidator:
    """Validator of a text or a list of texts: neither it nor any item is empty or blank."""

    def check(value: str | list[str]) -> str | list[str]:
        items = [value] if isinstance(value, str) else value
        if not items or not all(item.strip() for item in items):
            raise ValueError(f"is {value!r}, which names nothing. {advice}")
        return value

    return AfterValidator(check)


def names_among(known: Sequence[str], *, what: str) -> AfterValidator:
    """Validator of a list of names, each known and none twice; messages call one ``what``, such as ``a finding``."""

    def check(value: _Value) -> _Value:
        if not isinstance(value, list):
            return value
        for item in value:
            if item not in known:
                near = difflib.get_close_matches(item, known, n=1)
                advice = f"Did you mean {near[0]}?" if near else f"Write some of: {', '.join(known)}."
                raise ValueError(f"holds {item!r}, which is not {what}. {advice}")
        if len(set(value)) < len(value):
            raise ValueError(f"holds a name twice: {', '.join(value)}. Write each once.")
        return value

    return AfterValidator(check)


def number_or_quantile(*, logprob: bool, advice: str) -> AfterValidator:
    """Validator of a number (at most 0 for a ``logprob``) or ``quantile:q``; null passes."""

    def check(value: _Value) -> _Value:
        if isinstance(value, str) and not is_quantile(value):
            raise ValueError(f"is {value!r}. {advice} A quantile is above 0 and below 1.")
        if logprob and isinstance(value, int | float) and value > 0:
            raise ValueError(f"is {value}, but log-probabilities are never positive. Did you mean {-value}?")
        return value

    return AfterValidator(check)


class FloorRule(NamedTuple):
    """How the cooling floor is measured: a statistic of answers' lbar, and how far below it the floor lies."""

    statistic: str
    """``chosen``, ``gentle``, ``mean`` or ``quantile:q``."""

    taus: float
    """In units of the cooling temperature."""

    def __str__(self) -> str:
        """The one way to write it, in which runs are compared."""
        return self.statistic if self.taus == 0 else f"{self.statistic} - {self.taus:g} tau"


_FLOOR_RULE = re.compile(r"(chosen|gentle|mean|quantile:[^\s-]+)(?:\s*-\s*(\d+(?:\.\d+)?)\s*\*?\s*tau)?")


def floor_rule(text: str) -> FloorRule | None:
    """Read a rule such as ``gentle`` or ``chosen - 2 tau``; None for what is none.

    Example:
        >>> floor_rule("chosen - 2 tau")
        FloorRule(statistic='chosen', taus=2.0)
    """
    found = _FLOOR_RULE.fullmatch(text)
    if found is None or (found[1].startswith("quantile") and not is_quantile(found[1])):
        return None
    return FloorRule(found[1], float(found[2] or 0))


def _meant_floor(text: str) -> FloorRule | float | None:
    """The floor that a text may stand for that is none as it is written; None where no guess is good.

    Example:
        >>> print(_meant_floor("chosn - tau * 2"), _meant_floor("-3,5"))
        chosen - 2 tau -3.5
    """
    plain = (
        text.lower().replace("\u2212", "-").replace("\u2013", "-").replace("\u03c4", "tau").replace(",", ".").strip()
    )
    if re.fullmatch(r"-?\d+(\.\d+)?", plain):
        return -abs(float(plain))
    found = re.fullmatch(r"([a-z]+(?:\s*[:=]\s*[\d.]+)?)\s*(.*)", plain)
    if found is None:
        return None
    name, rest = re.sub(r"\s*[:=]\s*", ":", found[1]), found[2]
    name = "quantile:0.5" if name == "median" else name
    near = difflib.get_close_matches(name.partition(":")[0], ("chosen", "gentle", "mean", "quantile"), n=1, cutoff=0.8)
    # 2 tau, 2 * tau, 2tau, tau 2, tau * 2, tau
    taus = re.fullmatch(r"(?:-\s*(?:(?P<before>[\d.]+)\s*\*?\s*)?taus?\s*\*?\s*(?P<after>[\d.]+)?)?", rest)
    if not near or taus is None or (taus["before"] and taus["after"]):
        return None
    times = (taus["before"] or taus["after"] or "1") if rest else ""
    return floor_rule(near[0] + name.removeprefix(name.partition(":")[0]) + (f" - {times} tau" if times else ""))


def number_or_floor_rule(advice: str) -> AfterValidator:
    """Validator of the cooling floor: a log-probability, at most 0, or a :class:`FloorRule` as text."""

    def check(value: float | str) -> float | str:
        if isinstance(value, str):
            rule = floor_rule(value)
            if rule is None and (meant := _meant_floor(value)) is not None:
                raise ValueError(f"is {value!r}. Did you mean {meant}?")
            if rule is None:
                raise ValueError(f"is {value!r}. {advice} A quantile is above 0 and below 1.")
            return str(rule)
        if value > 0:
            raise ValueError(f"is {value}, but log-probabilities are never positive. Did you mean {-value}?")
        return value

    return AfterValidator(check)


def is_quantile(rule: str) -> bool:
    """Whether a rule reads ``quantile:q`` with 0 < q < 1."""
    name, _, number = rule.partition(":")
    try:
        return name == "quantile" and 0 < float(number) < 1
    except ValueError:
        return False


def schedule_of(what: str) -> AfterValidator:
    """Validator of a :data:`Fraction`, called ``what`` in messages; null and texts pass where the field allows them."""

    def check(value: _Value) -> _Value:
        if value is not None and not isinstance(value, str):
            check_schedule(value, what)
        return value

    return AfterValidator(check)


def check_schedule(value: object, what: str = "share") -> None:
    """Raise a ``ValueError`` for what is neither a share nor points in the order of progress."""
    if isinstance(value, int | float) and _is_number(value) and not 0 <= value <= 1:
        advice = f"Write {value / 100:g}." if 2 <= value <= 100 else "Write one from 0 to 1, such as 0.5."
        raise ValueError(f"is {value:g}, but a {what} goes from 0 to 1. {advice}")
    points = [(0.0, value)] if _is_number(value) else value
    if isinstance(points, str) or not isinstance(points, Sequence) or not points:
        raise ValueError(f"is {value!r}, but must be a {what} such as 0.5, or points such as [[0, 0], [1, 0.8]].")
    last = -math.inf
    for point in points:
        if not isinstance(point, Sequence) or len(point) != 2 or not all(map(_is_number, point)):
            raise ValueError(f"is {value!r}, but {point!r} is not a point. Write [progress, {what}], as [0.5, 0.8].")
        progress, share = map(float, point)
        if not (0 <= progress <= 1 and 0 <= share <= 1):
            raise ValueError(f"is {value!r}, but progress and {what} go from 0 to 1. Correct {point!r}.")
        if progress <= last:
            raise ValueError(f"is {value!r}, but its points are not in the order of progress. Sort them, each once.")
        last = progress


def check_fraction(value: Fraction) -> None:
    """:func:`check_schedule` for the share of on-policy negatives, with a ConfigError."""
    try:
        check_schedule(value)
    except ValueError as error:
        raise ConfigError(f"on_policy_fraction {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_server(judge: str) -> bool:
    """Whether a judge is a server, written as a URL."""
    return judge.startswith(("http://", "https://"))


def server_and_model(judge: str) -> tuple[str, str | None]:
    """The URL, and the model's name if there is one behind ``#``.

    Example:
        >>> server_and_model("http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct")
        ('http://127.0.0.1:8000/v1', 'Qwen/Qwen3-VL-8B-Instruct')
    """
    url, _, model = judge.partition("#")
    return url, model or None


def checked_judge(judge: str | None) -> str | None:
    """Validator: ``module:function``, the name of a rule, ``URL`` or ``URL#MODEL``."""
    if judge is None or judge in RULES:
        return judge
    if is_server(judge):
        return _without_secret(judge)
    if judge.count(":") != 1:
        raise ValueError(
            f"is {judge!r}, but must have one colon: `module:function`. There are also {', '.join(RULES)}, and a "
            "server as http://127.0.0.1:8000/v1#MODEL."
        )
    if not all(part.isidentifier() for part in judge.replace(":", ".").split(".")):
        advice = name_for_file(judge) or "Write `module:function`, or null."
        raise ValueError(f"is {judge!r}, but must name a function. {advice}")
    return judge


def checked_endpoint(url: str | None) -> str | None:
    """Validator: the URL of a server, without a secret in it."""
    return None if url is None else _without_secret(url)


def _without_secret(judge: str) -> str:
    try:
        check_url(server_and_model(judge)[0], "which")
    except ConfigError as error:
        raise ValueError(f"names a server, {error}") from None
    return judge
