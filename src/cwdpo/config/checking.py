"""From plain values to recipe sections, naming every setting that is unknown or wrong, and where it stands."""

import difflib
import functools
import re
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cwdpo.config.limits import STRICT
from cwdpo.config.located_yaml import KeyPath
from cwdpo.errors import ConfigError, shortened

Where: TypeAlias = Callable[[KeyPath], str]
"""Says where a setting stands: ``recipe.yaml:4`` or ``--stage2.beta``."""

_Section = TypeVar("_Section")


def build(
    section: type[_Section], values: Mapping[str, object], where: Where | None = None, *, path: KeyPath = ()
) -> _Section:
    """Make a recipe section, and the sections in it, from plain values as the YAML gave them.

    ``where`` is None where a setting's name says all; ``path`` is the section's own place in the recipe. A ConfigError
    has one line for each setting that is unknown, missing or wrong.
    """
    problems: list[str] = []

    def note(place: KeyPath, text: str) -> None:
        problems.append(text if where is None else f"{where(place)}: {text}")

    built = _built(section, values, path, note)
    if problems or built is None:
        raise ConfigError("\n".join(problems))
    return built


def problem_with(section: type, name: str, value: object) -> str:
    """Why a section would refuse a value, as a sentence that goes on after the setting's name; empty if it would not.

    Example:
        >>> from cwdpo.config.recipe import Stage2Config
        >>> problem_with(Stage2Config, "beta", -0.1)
        'is -0.1, but must be > 0. Try 0.1.'
    """
    hint = get_type_hints(section, include_extras=True)[name]
    try:
        TypeAdapter(hint, config=STRICT).validate_python(value)
    except ValidationError as error:
        return _explain(error.errors(include_url=False)[0], value, hint)
    return ""


@functools.cache
def section_fields(section: type) -> dict[str, tuple[Field[Any], Any]]:
    """Each field of a section with its type, ``Annotated`` taken off."""
    hints = get_type_hints(section)
    return {field.name: (field, hints[field.name]) for field in fields(section)}


def section_type(hint: object) -> type | None:
    """The dataclass that a type is, or may be beside null: ``CoolingConfig`` of ``CoolingConfig | None``."""
    return next((part for part in _alternatives(hint) if isinstance(part, type) and is_dataclass(part)), None)


def is_text(hint: object) -> bool:
    """Whether a type is a text, or a text among null and lists of texts."""
    kinds = {*_alternatives(hint)}
    return str in kinds and kinds <= {str, type(None), list[str]}


def _built(
    section: type[_Section], values: Mapping[str, object], path: KeyPath, note: Callable[[KeyPath, str], None]
) -> _Section | None:
    """The section, built from the innermost out; each mistake is noted with its place, and leaves None."""
    known = section_fields(section)  # type: ignore[arg-type]  # classes are hashable, a TypeVar of one is not to mypy
    prefix = "".join(f"{part}." for part in path)
    ready: dict[str, Any] = {}
    whole = True
    for key, value in values.items():
        if key not in known:
            note((*path, key), f"unknown key '{prefix}{key}'{_place_for(key, section, known, prefix)}")
            whole = False
            continue
        inner = section_type(known[key][1])
        ready[key] = value
        if inner is not None and isinstance(value, Mapping):
            ready[key] = _built(inner, value, (*path, key), note)
            whole = whole and ready[key] is not None
    for name, (field, hint) in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            note(path, f"'{prefix}{name}' is missing. Add it; it is {describe_type(hint)}.")
            whole = False
    if not whole:
        return None
    try:
        return section(**ready)
    except ValidationError as error:
        seen = set()  # pydantic gives one mistake a setting and alternative of its type
        for detail in error.errors(include_url=False):
            name = str(detail["loc"][0]) if detail["loc"] else ""
            if not name:  # settings that do not go together
                note(path, str(detail["ctx"]["error"]))
            elif name not in seen:
                text = _explain(detail, ready.get(name), known[name][1], name=f"{prefix}{name}")
                note((*path, name), f"{prefix}{name} {text}")
            seen.add(name)
        return None


def _explain(detail: ErrorDetails, value: object, hint: object, *, name: str = "") -> str:
    """What is wrong with a value, as it goes on after the setting's full name."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    section = section_type(hint)
    if section is not None and not isinstance(value, Mapping):
        advice = _as_section(section, value, hint, name)
    else:
        advice = _near_choice(value, _choices(_alternatives(hint))) or _as_number(value, _alternatives(hint))
    return f"is {shown(value)}, but must be {describe_type(hint)}.{advice}"


def _as_section(section: type, value: object, hint: object, name: str) -> str:
    """What to write for a section that was given one value, if what was meant can be guessed."""
    known = section_fields(section)
    if isinstance(value, str) and re.fullmatch(r"\{.*\}", value.strip()):
        return " Take off its quotes."
    if (
        isinstance(value, str)
        and (found := re.fullmatch(r"(\w+)(?:\s*:|\s|$)\s*(.*)", value.strip()))
        and found[1] in known
    ):
        key, rest = found[1], found[2] or "..."
        return f" Is a colon or the space after it missing? Write {key}: {rest}."
    if value is False and type(None) in _alternatives(hint):
        return " To switch it off, write null."
    if value is True:
        return " For its defaults, write {}."
    needed = [name for name, (each, _) in known.items() if each.default is MISSING and each.default_factory is MISSING]
    if len(needed) == 1:
        return f" Write {{{needed[0]}: {value}}}, or --{name}.{needed[0]} {value} on the command line."
    return ""


def _place_for(key: str, section: type, known: Collection[str], prefix: str) -> str:
    """Where an unknown key of a section may belong: under a like name, further down, or among the Trainer's."""
    below = [".".join(path) for path in known_paths(section, ()) if path[-1] == key]
    if below and not difflib.get_close_matches(key, list(known), n=1, cutoff=0.8):
        return f". It belongs further down: {' or '.join(f'{prefix}{path}' for path in below[:3])}."
    if "trainer" in known and (name := trainer_name(key)) is not None:
        return f" - did you mean '{prefix}trainer.{name}'?"
    trainer = f", or if it is a setting of transformers.TrainingArguments, {prefix}trainer.{key}"
    otherwise = f". Known here: {', '.join(known)}{trainer if 'trainer' in known else ''}."
    return _suggestion(key, known, prefix, otherwise)


def known_paths(section: type, above: KeyPath) -> list[KeyPath]:
    """The paths of all settings and sections of a section, which stands at a path itself."""
    paths: list[KeyPath] = []
    for name, (_, hint) in section_fields(section).items():
        paths.append((*above, name))
        if inner := section_type(hint):
            paths += known_paths(inner, (*above, name))
    return paths


def _choices(kinds: Sequence[object]) -> list[object]:
    return [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]


def _as_number(value: object, kinds: Sequence[object]) -> str:
    """What to write for a text that was meant as a number, where one is wanted: ``0,2``, ``75%`` or one in quotes."""
    text = value.strip().strip("'\"") if isinstance(value, str) else ""
    if not {float, int} & {*kinds} or not re.fullmatch(r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?%?", text):
        return ""
    decimal = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text) else text.replace(",", ".")
    try:
        meant = float(decimal.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return ""
    return f" Write {meant:g}." if "," in text or "%" in text else f" Write {text}, without quotes."


def _near_choice(value: object, choices: Sequence[object]) -> str:
    near = difflib.get_close_matches(str(value), map(str, choices), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _suggestion(key: str, known: Collection[str], prefix: str, otherwise: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f" - did you mean '{prefix}{near[0]}'?" if near else otherwise


def shown(value: object) -> str:
    """A value as the recipe would write it, cut where it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return shortened(repr(value))


def describe_type(hint: object) -> str:
    """A type as messages call it, such as ``a whole number or null``."""
    return " or ".join(_describe_one(part) for part in _alternatives(hint))


_PLAIN_NAMES: Mapping[object, str] = {
    float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"
}  # fmt: skip


def _describe_one(part: object) -> str:
    if get_origin(part) is Literal:
        choices = [choice if isinstance(choice, str) else shown(choice) for choice in get_args(part)]
        return "one of " + ", ".join(choices) if len(choices) > 1 else choices[0]
    if get_origin(part) is list:
        return "a list of texts" if get_args(part)[0] is str else "a list of points [progress, share]"
    if (get_origin(part) or part) is dict:
        return "a section of keys and values"
    if isinstance(part, type) and is_dataclass(part):
        return "a section with the keys " + ", ".join(field.name for field in fields(part))
    return _PLAIN_NAMES[part]


def _alternatives(hint: object) -> tuple[object, ...]:
    """The types that a hint allows, ``Annotated`` taken off: ``int | None`` is int and NoneType."""
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


_ELSEWHERE = {
    "output_dir": "Write it at the top of the recipe: `output_dir: ...`.",
    "seed": "Write it at the top of the recipe: `seed: ...`.",
    "engine": "Write it at the top of the recipe: `engine: ...`.",
    "max_length": "Write it in the section of the data: `data: {max_length: ...}`.",
    "hub_token": "It would stand in the run's files. Put it into the environment: HF_TOKEN.",
    "push_to_hub_token": "It would stand in the run's files. Put it into the environment: HF_TOKEN.",
    "resume_from_checkpoint": "Run `cwdpo train RECIPE --resume` instead.",
}


def set_elsewhere(key: str) -> bool:
    """Whether a setting of the Trainer stands in another place of a recipe than its ``trainer`` sections."""
    return key in _ELSEWHERE


_SHORT_NAMES: Mapping[str, Sequence[str]] = {
    "learning_rate": ("lr",),
    "num_train_epochs": ("epoch", "epochs", "num_epochs", "max_epochs", "n_epochs"),
    "max_steps": ("steps", "num_steps", "max_train_steps", "train_steps"),
    "per_device_train_batch_size": ("batch", "batch_size", "train_batch_size", "micro_batch_size", "bs"),
    "gradient_accumulation_steps": ("grad_accum", "gradient_accumulation", "accumulate_grad_batches", "accum_steps"),
    "lr_scheduler_type": ("scheduler", "lr_scheduler", "lr_schedule"),
    "warmup_steps": ("warmup", "warmup_ratio", "num_warmup_steps"),
    "optim": ("optimizer", "optimiser"),
    "max_grad_norm": ("grad_clip", "clip_grad_norm", "gradient_clipping", "gradient_clip_val"),
    "dataloader_num_workers": ("workers", "num_workers"),
    "report_to": ("logger", "loggers"),
}
"""Settings of the Trainer, and other words for them: of other tools, or short."""


def trainer_name(word: str) -> str | None:
    """The Trainer's name of a setting that was given by another word for it.

    Example:
        >>> trainer_name("lr"), trainer_name("beta")
        ('learning_rate', None)
    """
    return next((name for name, words in _SHORT_NAMES.items() if word.lower() in words), None)


_FREE = ("fsdp",)  # settings that take more types than they are declared with
_MUST_BE = {
    "per_device_train_batch_size": (1, "Write the number of rows in a step."),
    "per_device_eval_batch_size": (1, "Write the number of rows in a step."),
    "gradient_accumulation_steps": (1, "Write 1 for no accumulation."),
    "dataloader_num_workers": (0, "Write 0 to load rows in the training process."),
    "learning_rate": (0, "Try 1e-5."),
    "save_total_limit": (1, "Write null to keep all checkpoints."),
}
"""Smallest value and advice, where the Trainer itself would fail late or not at all."""


def check_trainer_section(
    section: Mapping[str, object], known: Mapping[str, object], where: Where, *, path: KeyPath = ("trainer",)
) -> None:
    """Refuse, in a line each, keys that do not exist or that the recipe sets itself, and values of another type than
    declared. ``known`` are the training arguments' fields with their types."""
    problems = []
    prefix = "".join(f"{part}." for part in path)
    for key, value in section.items():
        full, place = f"{prefix}{key}", where((*path, key))
        if key in _ELSEWHERE:
            problems.append(f"{place}: '{full}' is not set here. {_ELSEWHERE[key]}")
        elif key not in known:
            otherwise = ". It is not a setting of transformers.TrainingArguments; see its documentation."
            name = trainer_name(key)
            meant = f" - did you mean '{prefix}{name}'?" if name else _suggestion(key, known, prefix, otherwise)
            problems.append(f"{place}: unknown key '{full}'{meant}")
        elif wrong := _wrong_argument(key, value, known[key]):
            problems.append(f"{place}: {full} is {wrong}")
    if problems:
        raise ConfigError("\n".join(problems))


def _wrong_argument(key: str, value: object, hint: object) -> str:
    """What is wrong with a value, as the end of a sentence; empty if nothing is."""
    if key in _FREE:
        return ""
    enumerated = any(isinstance(kind, type) and issubclass(kind, Enum) for kind in _alternatives(hint))
    # an enumeration's texts rule out any other text
    kinds = tuple(_as_written(kind) for kind in _alternatives(hint) if not (enumerated and kind is str))
    adapter: TypeAdapter[Any] = TypeAdapter(Union[kinds], config=ConfigDict(strict=True))  # type: ignore[arg-type]  # noqa: UP007
    try:
        adapter.validate_python(value)
    except ValidationError:
        return f"{shown(value)}, but {_wanted(value, kinds)}"
    smallest, advice = _MUST_BE.get(key, (None, ""))
    if smallest is not None and isinstance(value, (int, float)) and not value >= smallest:
        return f"{value}, but must be at least {smallest}. {advice}"
    return ""


def _as_written(kind: Any) -> Any:
    """A type as YAML writes it: an enumeration as its texts."""
    if get_origin(kind) is list:
        return list[_as_written(get_args(kind)[0])]  # type: ignore[misc]
    if not isinstance(kind, type) or kind.__module__ == "builtins":
        return kind
    if issubclass(kind, Enum):
        return Literal[tuple(str(item.value) for item in kind)]
    return Annotated[kind, InstanceOf()]  # type: ignore[type-arg]


def _wanted(value: object, kinds: Sequence[object]) -> str:
    """What a value must be that fits none of the types, and what may have been meant."""
    for kind in kinds:
        if get_origin(kind) is type(value):
            return f"its values must be {describe_type(get_args(kind)[-1])}."
    choices = _choices(kinds)
    bare = value is False and "no" in choices
    advice = _near_choice(value, choices) or _as_number(value, kinds)
    advice = " YAML reads a bare no as false: write 'no', in quotes." if bare else advice
    writable = (kind for kind in kinds if get_origin(kind) is not Annotated)  # only Python can make an instance
    named = ("a list" if get_origin(kind) is list else describe_type(kind) for kind in writable)
    return f"must be {' or '.join(named)}.{advice}"
