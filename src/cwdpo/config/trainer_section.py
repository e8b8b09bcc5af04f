"""The recipe's ``trainer`` sections: which keys there are, and which types of values the training arguments declare."""

import difflib
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from cwdpo.config.checking import alternatives
from cwdpo.errors import ConfigError

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

_NAMES = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}


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
            problems.append(f"{where(key)}: unknown key '{full}'{_suggestion(key, known, name)}")
        else:
            wrong = _wrong_value(key, value, known[key])
            problems += [f"{where(key)}: {full} is {wrong}"] if wrong else []
    if problems:
        raise ConfigError("\n".join(problems))


def _wrong_value(key: str, value: Any, hint: Any) -> str:
    """What is wrong with a value, as the end of a sentence; empty if nothing is."""
    shown = {None: "null", True: "true", False: "false"}.get(value) if _is_constant(value) else None
    kinds = alternatives(hint)
    choices = [choice for kind in kinds for choice in _choices(kind)]
    if key in _FREE:
        return ""
    if choices and (isinstance(value, str) or not any(_fits(value, kind) for kind in kinds)):
        if value in choices:
            return ""
        near = difflib.get_close_matches(str(value), choices, n=1)
        advice = f" Did you mean {near[0]}?" if near else ""
        if value is False and "no" in choices:
            advice = " YAML reads a bare no as false: write 'no', in quotes."
        return f"{shown or repr(value)}, but must be one of {', '.join(choices)}.{advice}"
    if not any(_fits(value, kind) for kind in kinds):
        wanted = " or ".join(dict.fromkeys(_described(kind) for kind in kinds))
        return f"{shown or repr(value)}, but must be {wanted}."
    smallest, advice = _MUST_BE.get(key, (None, ""))
    if smallest is not None and isinstance(value, (int, float)) and not value >= smallest:
        return f"{value}, but must be at least {smallest}. {advice}"
    return ""


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _choices(kind: Any) -> list[str]:
    """The texts that an enumeration allows."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(item.value) for item in kind]
    return [item for item in get_args(kind) if isinstance(item, str)] if get_origin(kind) is Literal else []


def _fits(value: Any, kind: Any) -> bool:
    """Whether a plain value is of a type; of types that YAML cannot write, anything is."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return any(value is item or value == item for item in get_args(kind))
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (bool, str, list, dict, type(None)):
        return isinstance(value, origin)
    return isinstance(origin, type) and isinstance(value, origin)


def _described(kind: Any) -> str:
    origin = get_origin(kind) or kind
    if origin is Literal:
        return " or ".join("false" if item is False else str(item) for item in get_args(kind))
    if origin is list:
        return "a list"
    return "a section of keys and values" if origin is dict else _NAMES.get(origin, getattr(origin, "__name__", ""))


def _suggestion(key: str, known: Collection[str], name: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f" - did you mean '{name}.{near[0]}'?"
    return ". It is no setting of transformers.TrainingArguments; see its documentation."
