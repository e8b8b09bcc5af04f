"""From plain values to recipe sections, naming every setting that is unknown or wrong, and where it stands."""

import difflib
import functools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError

from cwdpo.config.located_yaml import KeyPath
from cwdpo.errors import ConfigError

Where: TypeAlias = Callable[[KeyPath], str]
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
    section: type[_Section], values: Mapping[str, Any], path: KeyPath, where: Where, problems: list[str]
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
            problems.append(f"{where(path)}: '{full}' is missing. Add it; it is {describe(hint)}.")
    if len(problems) > before:
        return None
    try:
        return section(**ready)
    except ValidationError as error:
        problems.extend(_explain(error, ready, path, where, known))
        return None


def _explain(
    error: ValidationError, values: Mapping[str, Any], path: KeyPath, where: Where, known: Mapping[str, tuple[Any, Any]]
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
    return f"{name} is {shown(value)}, but must be {describe(hint)}.{hint_text}"


def shown(value: Any) -> str:
    """A value as the recipe would write it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(value)


def describe(hint: Any) -> str:
    """A type as messages call it, such as ``a whole number or null``."""
    return " or ".join(_describe_one(part) for part in alternatives(hint))


def _describe_one(part: Any) -> str:
    if get_origin(part) is Literal:
        choices = [choice if isinstance(choice, str) else shown(choice) for choice in get_args(part)]
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    if get_origin(part) is list:
        return "a list of texts" if get_args(part)[0] is str else "a list of points [progress, share]"
    if (get_origin(part) or part) is dict:
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


def _prefix(path: KeyPath) -> str:
    return "".join(f"{part}." for part in path)


_ELSEWHERE = {
    "output_dir": "Write it at the top of the recipe: `output_dir: ...`.",
    "seed": "Write it at the top of the recipe: `seed: ...`.",
    "engine": "Write it at the top of the recipe: `engine: ...`.",
    "max_length": "Write it in the section of the data: `data: {max_length: ...}`.",
    "resume_from_checkpoint": "Run `cwdpo train RECIPE --resume` instead.",
}
_FREE = ("fsdp",)
"""Settings that take more types than they are declared with."""

_MUST_BE = {
    "per_device_train_batch_size": (1, "Write the number of rows in a step."),
    "per_device_eval_batch_size": (1, "Write the number of rows in a step."),
    "gradient_accumulation_steps": (1, "Write 1 for no accumulation."),
    "dataloader_num_workers": (0, "Write 0 to load rows in the training process."),
    "learning_rate": (0, "Try 1e-5."),
    "save_total_limit": (1, "Write null to keep all checkpoints."),
}
"""Smallest value and advice, where the Trainer itself would fail late or not at all."""

_STRICT = ConfigDict(strict=True)


def check_trainer_section(
    section: Mapping[str, Any], known: Mapping[str, Any], where: Callable[[str], str], *, name: str = "trainer"
) -> None:
    """Refuse keys that there are not or that the recipe sets itself, and values of another type than declared.

    Args:
        section: the keys and values under ``trainer``.
        known: the training arguments' fields and their types.
        where: says where a key stands, such as ``recipe.yaml:7``.
        name: the section as messages call it, such as ``stage2.trainer``.

    Raises:
        ConfigError: one line for each such key.
    """
    problems = []
    for key, value in section.items():
        full = f"{name}.{key}"
        if key in _ELSEWHERE:
            problems.append(f"{where(key)}: '{full}' is not set here. {_ELSEWHERE[key]}")
        elif key not in known:
            problems.append(f"{where(key)}: unknown key '{full}'{_argument_suggestion(key, known, name)}")
        else:
            wrong = _wrong_value(key, value, known[key])
            problems += [f"{where(key)}: {full} is {wrong}"] if wrong else []
    if problems:
        raise ConfigError("\n".join(problems))


def _wrong_value(key: str, value: Any, hint: Any) -> str:
    """What is wrong with a value, as the end of a sentence; empty if nothing is."""
    if key in _FREE:
        return ""
    kinds = _as_written(hint)
    adapter: TypeAdapter[Any] = TypeAdapter(Union[kinds], config=_STRICT)  # type: ignore[arg-type]  # noqa: UP007
    try:
        adapter.validate_python(value)
    except ValidationError:
        return f"{shown(value)}, but {_wanted(value, kinds)}"
    smallest, advice = _MUST_BE.get(key, (None, ""))
    if smallest is not None and isinstance(value, (int, float)) and not value >= smallest:
        return f"{value}, but must be at least {smallest}. {advice}"
    return ""


def _as_written(hint: Any) -> tuple[Any, ...]:
    """The types of a hint as YAML writes them: an enumeration as its texts, which rule out any other text."""
    kinds = alternatives(hint)
    enumerated = any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds)
    return tuple(_one_as_written(kind) for kind in kinds if not (enumerated and kind is str))


def _one_as_written(kind: Any) -> Any:
    if get_origin(kind) is list:
        return list[_one_as_written(get_args(kind)[0])]  # type: ignore[misc]
    if not isinstance(kind, type) or kind.__module__ == "builtins":
        return kind
    if issubclass(kind, Enum):
        return Literal[tuple(str(item.value) for item in kind)]
    return Annotated[kind, InstanceOf()]  # type: ignore[type-arg]


def _wanted(value: Any, kinds: Sequence[Any]) -> str:
    """What a value must be that fits none of the types, and what may have been meant."""
    for kind in kinds:
        if get_origin(kind) is type(value):
            return f"its values must be {describe(get_args(kind)[-1])}."
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    advice = f" Did you mean {near[0]}?" if near else ""
    if value is False and "no" in choices:
        advice = " YAML reads a bare no as false: write 'no', in quotes."
    writable = (kind for kind in kinds if get_origin(kind) is not Annotated)  # only Python can make an instance
    named = ("a list" if get_origin(kind) is list else describe(kind) for kind in writable)
    return f"must be {' or '.join(named)}.{advice}"


def _argument_suggestion(key: str, known: Collection[str], name: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f" - did you mean '{name}.{near[0]}'?"
    return ". It is no setting of transformers.TrainingArguments; see its documentation."
