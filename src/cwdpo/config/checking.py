"""From plain values to recipe sections, naming every setting that is unknown or wrong, and where it stands."""

import difflib
import functools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from cwdpo.config.located_yaml import Path
from cwdpo.errors import ConfigError

Where: TypeAlias = Callable[[Path], str]
"""Says where a setting stands: ``recipe.yaml:4`` or ``--stage2.beta``."""

_Section = TypeVar("_Section")
_PLAIN_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}


def build(section: type[_Section], values: Mapping[str, Any], where: Where) -> _Section:
    """Make a recipe section, and the sections in it, from plain values.

    Args:
        section: the dataclass, usually :class:`cwdpo.config.recipe.Recipe`.
        values: keys and values as the YAML gave them.
        where: says where a setting stands, for messages.

    Raises:
        ConfigError: one line for each setting that is unknown, missing or wrong.
    """
    problems: list[str] = []
    built = _build(section, values, (), where, problems)
    if problems or built is None:
        raise ConfigError("\n".join(problems))
    return built


@functools.cache
def section_fields(section: type) -> dict[str, tuple[Field[Any], Any]]:
    """Each field of a section with its type, ``Annotated`` taken off."""
    hints = get_type_hints(section)
    return {field.name: (field, hints[field.name]) for field in fields(section)}


def section_type(hint: Any) -> type | None:
    """The dataclass that a type is, or may be beside null.

    Example:
        >>> from cwdpo.config.recipe import CoolingConfig
        >>> section_type(CoolingConfig | None).__name__
        'CoolingConfig'
    """
    return next((part for part in alternatives(hint) if isinstance(part, type) and is_dataclass(part)), None)


def _build(
    section: type[_Section], values: Mapping[str, Any], path: Path, where: Where, problems: list[str]
) -> _Section | None:
    known = section_fields(section)  # type: ignore[arg-type]  # classes are hashable, a TypeVar of one is not to mypy
    before = len(problems)
    ready: dict[str, Any] = {}
    for key, value in values.items():
        here = (*path, key)
        if key not in known:
            problems.append(f"{where(here)}: unknown key '{'.'.join(here)}'{_suggestion(key, known, _prefix(path))}")
            continue
        inner = section_type(known[key][1])
        ready[key] = value
        if inner is not None and isinstance(value, Mapping):
            ready[key] = _build(inner, value, here, where, problems)
    for name, (field, hint) in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            full = ".".join((*path, name))
            problems.append(f"{where(path)}: '{full}' is missing. Add it; it is {_describe(hint)}.")
    if len(problems) > before:
        return None
    try:
        return section(**ready)
    except ValidationError as error:
        problems.extend(_explain(error, ready, path, where, known))
        return None


def _explain(
    error: ValidationError, values: Mapping[str, Any], path: Path, where: Where, known: Mapping[str, tuple[Any, Any]]
) -> Sequence[str]:
    """One line a setting; pydantic gives one a setting and alternative of its type."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        name = str(detail["loc"][0]) if detail["loc"] else ""
        here = (*path, name) if name else path
        if detail["type"] == "value_error":
            text = str(detail["ctx"]["error"])
        else:
            text = _wrong_type(".".join(here), values.get(name), known[name][1])
        lines.setdefault(name, f"{where(here)}: {text}")
    return list(lines.values())


def _wrong_type(name: str, value: Any, hint: Any) -> str:
    choices = [str(choice) for part in alternatives(hint) if get_origin(part) is Literal for choice in get_args(part)]
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint_text = f" Did you mean {near[0]}?" if near else ""
    return f"{name} is {_shown(value)}, but must be {_describe(hint)}.{hint_text}"


def _shown(value: Any) -> str:
    """A value as the recipe would write it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def _describe(hint: Any) -> str:
    return " or ".join(_describe_one(part) for part in alternatives(hint))


def _describe_one(part: Any) -> str:
    if get_origin(part) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(part))
    if get_origin(part) is list:
        return "a list of texts" if get_args(part)[0] is str else "a list of points [progress, share]"
    if get_origin(part) is dict:
        return "a section of keys and values"
    if is_dataclass(part):
        return "a section with the keys " + ", ".join(field.name for field in fields(part))
    return _PLAIN_NAMES[part]


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows, ``Annotated`` taken off: ``int | None`` is int and NoneType."""
    if get_origin(hint) is Annotated:
        return alternatives(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _suggestion(key: str, known: Collection[str], prefix: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f" - did you mean '{prefix}{near[0]}'?"
    return f". Known here: {', '.join(known)}."


def _prefix(path: Path) -> str:
    return "".join(f"{part}." for part in path)
