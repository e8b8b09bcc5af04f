"""What a setting's value may be, said beside the field that holds it: ``Annotated[float, limit(...)]``."""

import difflib
import math
from collections.abc import Sequence, Sized
from typing import Any, TypeAlias, TypeVar

from pydantic import AfterValidator, ConfigDict

from cwdpo.errors import ConfigError

# strict: a quoted "16" or a `yes` where a number belongs is a slip of the pen, not a number
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_Value = TypeVar("_Value", bound=Sized)


def limit(
    name: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    advice: str,
) -> AfterValidator:
    """Validator of a number; null passes where the field allows it.

    Args:
        name: the setting as messages call it, such as ``cooling.temperature``.
        above: smallest value, itself excluded.
        at_least: smallest value, itself included.
        below: largest value, itself excluded.
        at_most: largest value, itself included.
        advice: what to write instead, a full sentence.
    """
    bounds = {"> ": above, ">= ": at_least, "< ": below, "<= ": at_most}
    wanted = " and ".join(f"{sign}{bound:g}" for sign, bound in bounds.items() if bound is not None)

    def check(value: float | None) -> float | None:
        if value is None:
            return None
        inside = (
            (above is None or value > above)
            and (at_least is None or value >= at_least)
            and (below is None or value < below)
            and (at_most is None or value <= at_most)
        )
        if not inside:
            raise ConfigError(f"{name} is {value}, but must be {wanted}. {advice}")
        return value

    return AfterValidator(check)


def not_empty(name: str, *, advice: str) -> AfterValidator:
    """Validator of a text or a list of texts: neither it nor any item is empty or blank."""

    def check(value: _Value) -> _Value:
        items = [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        if not items or not all(str(item).strip() for item in items):
            raise ConfigError(f"{name} is {value!r}, which names nothing. {advice}")
        return value

    return AfterValidator(check)


def names_among(name: str, known: Sequence[str], *, what: str) -> AfterValidator:
    """Validator of a list of names, each known and none twice; other values pass.

    Args:
        name: the setting as messages call it.
        known: the names that there are.
        what: one of them as messages call it, such as ``an answer group``.
    """

    def check(value: _Value) -> _Value:
        if not isinstance(value, list):
            return value
        for item in value:
            if item not in known:
                near = difflib.get_close_matches(item, known, n=1)
                advice = f"Did you mean {near[0]}?" if near else f"Write some of: {', '.join(known)}."
                raise ConfigError(f"{name} holds {item!r}, which is not {what}. {advice}")
        if len(set(value)) < len(value):
            raise ConfigError(f"{name} holds a name twice: {', '.join(value)}. Write each once.")
        return value

    return AfterValidator(check)


def checked_every(every: int | str) -> int | str:
    """``auto``, or steps of at least 1; as given.

    Raises:
        ConfigError: it is neither.
    """
    if every == "auto" or (isinstance(every, int) and every >= 1):
        return every
    raise ConfigError(
        f"probes.every is {every!r}. Write auto, or the number of steps between two readings. To read nothing write "
        "`probes: null`."
    )


def checked_floor(floor: float | str) -> float | str:
    """``gentle``, ``mean``, ``quantile:q`` with 0 < q < 1, or nats per token at most 0; as given.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> checked_floor("quantile:0.5")
        'quantile:0.5'
    """
    if isinstance(floor, str):
        if floor in ("gentle", "mean") or is_quantile(floor):
            return floor
        raise ConfigError(
            f"cooling.floor is {floor!r}. Write gentle, mean, quantile:q with 0 < q < 1 (such as quantile:0.5), "
            "or a number of nats per token, at most 0."
        )
    if floor > 0:
        raise ConfigError(f"cooling.floor is {floor}, but log-probabilities are never positive. Did you mean {-floor}?")
    return floor


def is_quantile(rule: str) -> bool:
    """Whether a rule reads ``quantile:q`` with 0 < q < 1."""
    name, _, number = rule.partition(":")
    try:
        return name == "quantile" and 0 < float(number) < 1
    except ValueError:
        return False


Fraction: TypeAlias = float | Sequence[Sequence[float]]
"""A share, or points ``[progress, share]`` with straight lines between them; progress goes from 0 to 1 over the run."""


def check_fraction(value: Fraction, name: str = "on_policy_fraction", what: str = "share") -> None:
    """Refuse what is neither a share nor a schedule.

    Args:
        value: from the recipe.
        name: the setting, as messages call it.
        what: the number, as messages call it.

    Raises:
        ConfigError: a share outside [0, 1], or points that are not in the order of progress.
    """
    points: Any = [(0.0, value)] if _is_number(value) else value
    told = f"{name} is {value!r}"
    if isinstance(points, str) or not isinstance(points, Sequence) or not points:
        raise ConfigError(f"{told}, but must be a {what} such as 0.5, or points such as [[0, 0], [1, 0.8]].")
    last = -math.inf
    for point in points:
        if not isinstance(point, Sequence) or len(point) != 2 or not all(map(_is_number, point)):
            raise ConfigError(f"{told}, but {point!r} is no point. Write [progress, {what}], as [0.5, 0.8].")
        progress, share = map(float, point)
        if not (0 <= progress <= 1 and 0 <= share <= 1):
            raise ConfigError(f"{told}, but progress and {what} go from 0 to 1. Correct {point!r}.")
        if progress <= last:
            raise ConfigError(f"{told}, but its points are not in the order of progress. Sort them, each once.")
        last = progress


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


RULES = ("same_words",)
"""Judges that need nothing but the texts."""


def is_server(judge: str) -> bool:
    """Whether a judge is a server, written as a URL."""
    return judge.startswith(("http://", "https://"))


def server_and_model(judge: str) -> tuple[str, str | None]:
    """The URL, and the model's name if there is one behind ``#``.

    Example:
        >>> server_and_model("http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct")
        ('http://127.0.0.1:8000/v1', 'Qwen/Qwen3-VL-8B-Instruct')
        >>> server_and_model("http://127.0.0.1:8000/v1")
        ('http://127.0.0.1:8000/v1', None)
    """
    url, _, model = judge.partition("#")
    return url, model or None


def checked_judge(judge: str | None) -> str | None:
    """``module:function``, the name of a rule, ``URL`` or ``URL#MODEL``; as given.

    Raises:
        ConfigError: it is none of these.
    """
    if judge is None or judge in RULES or is_server(judge):
        return judge
    if judge.count(":") != 1:
        raise ConfigError(
            f"negatives.judge is {judge!r}, but must have one colon: `module:function`. There are also "
            f"{', '.join(RULES)}, and a server as http://127.0.0.1:8000/v1#MODEL."
        )
    if not all(part.isidentifier() for part in judge.replace(":", ".").split(".")):
        raise ConfigError(f"negatives.judge is {judge!r}, but must name a function: `module:function`, or null.")
    return judge
