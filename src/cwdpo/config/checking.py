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

from cwdpo.config.foreign import NEAR_LOSSES, in_its_place, our_name, our_value
from cwdpo.config.limits import STRICT, Called, Limit, limit
from cwdpo.config.located_yaml import KeyPath
from cwdpo.config.recipe import Recipe
from cwdpo.errors import ConfigError, shortened

Where: TypeAlias = Callable[[KeyPath], str]
"""Says where a setting stands: ``recipe.yaml:4`` or ``--stage2.beta``."""

TrainerFields: TypeAlias = Callable[[], Mapping[str, object]]
"""Gives the names of the Trainer's settings and their types; asked only where they are needed, as it takes seconds."""

_Section = TypeVar("_Section")


def build(
    section: type[_Section],
    values: Mapping[str, object],
    where: Where | None = None,
    *,
    path: KeyPath = (),
    trainer_fields: TrainerFields | None = None,
) -> _Section:
    """Make a recipe section, and the sections in it, from plain values as the YAML gave them.

    ``where`` is None where a setting's name says all; ``path`` is the section's own place in the recipe. A ConfigError
    has one line for each setting that is unknown, missing or wrong; with ``trainer_fields`` it knows those of the
    Trainer, too.
    """
    paths = known_paths(section, path)
    problems: list[str] = []

    def note(place: KeyPath, text: str) -> None:
        problems.append(text if where is None else f"{where(place)}: {text}")

    def advise(unknown: KeyPath) -> str:
        found = meant(unknown, paths, trainer_fields)
        if found == [("trainer", unknown[-1])] and (own := own_of_stages(values, unknown[-1])):
            return f". Each stage has its own: change {' and '.join(own)}."
        return replacement(unknown[-1], trainer_fields) or _advice_on_unknown(unknown, found, paths)

    built = _built(section, values, path, note, advise)
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
        return _explain(error.errors(include_url=False)[0], value, hint, section, name)
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
    section: type[_Section],
    values: Mapping[str, object],
    path: KeyPath,
    note: Callable[[KeyPath, str], None],
    advise: Callable[[KeyPath], str],
) -> _Section | None:
    """The section, built from the innermost out; each mistake is noted with its place, and leaves None."""
    known = section_fields(section)  # type: ignore[arg-type]  # classes are hashable, a TypeVar of one is not to mypy
    prefix = "".join(f"{part}." for part in path)
    ready: dict[str, Any] = {}
    whole = True
    for key, value in values.items():
        if key not in known:
            note((*path, key), f"unknown key '{prefix}{key}'{advise((*path, key))}")
            whole = False
            continue
        inner = section_type(known[key][1])
        ready[key] = value
        if inner is not None and isinstance(value, Mapping):
            ready[key] = _built(inner, value, (*path, key), note, advise)
            whole = whole and ready[key] is not None
    for name, (field, _) in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            note(path, f"'{prefix}{name}' is missing. Add it; it is {_called(section, name)}.")
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
                error = detail["ctx"]["error"]
                setting = getattr(error, "setting", None)
                note((*path, setting) if setting in known else path, str(error))
            elif name not in seen:
                text = _explain(detail, ready.get(name), known[name][1], section, f"{prefix}{name}")
                note((*path, name), f"{prefix}{name} {text}")
            seen.add(name)
        return None


def _called(section: type, name: str) -> str:
    """What messages call the values of a setting: its own words where it has some, else its type."""
    hint = get_type_hints(section, include_extras=True)[name]
    own = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Called)), None)
    return describe_type(hint) if own is None else own.what


def _explain(detail: ErrorDetails, value: object, hint: object, section: type, name: str) -> str:
    """What is wrong with a value of a section's setting, as it goes on after its name, which may be the full one."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    key = name.rpartition(".")[2]
    inner, kinds = section_type(hint), _alternatives(hint)
    if isinstance(value, Mapping) and (wrong := _wrong_item(value, kinds, name)):
        return wrong
    if inner is not None and not isinstance(value, Mapping):
        advice = _as_section(inner, value, hint, name)
    else:
        advice = (
            _as_weights(value, kinds, name)
            or _near_choice(value, _choices(kinds), name)
            or _as_number(value, kinds)
            or _for_example(kinds, _example_of(section, key))
        )
    return f"is {shown(value)}, but must be {_called(section, key)}.{advice}"


def _example_of(section: type, key: str) -> str:
    """A sentence with a number to write for a setting: its default, or what its limit advises; else empty."""
    default = section_fields(section)[key][0].default
    if isinstance(default, int | float):
        return f"Write one, such as {default}."
    extras = getattr(get_type_hints(section, include_extras=True)[key], "__metadata__", ())
    return next((each.advice for each in extras if isinstance(each, Limit)), "")


def _wrong_item(value: Mapping[object, object], kinds: Sequence[object], name: str) -> str:
    """What is wrong in a section whose keys are words, such as losses with weights; empty for other types."""
    pairs = (get_args(kind) for kind in kinds if get_origin(kind) is dict)
    pair = next((pair for pair in pairs if _choices(_alternatives(pair[0]))), None)
    if pair is None:
        return ""
    choices = _choices(_alternatives(pair[0]))
    for key, item in value.items():
        if key not in choices:
            near = _near_choice(key, choices, name)
            return f"has the key {shown(key)}, but its keys must be {describe_type(pair[0])}.{near}"
        if {*_alternatives(pair[1])} == {float} and type(item) not in (int, float):
            return (
                f"has {key}: {shown(item)}, but must have {describe_type(pair[1])} there.{_as_number(item, (float,))}"
            )
    return ""


def _as_weights(value: object, kinds: Sequence[object], name: str) -> str:
    """What to write for several words where a section has them as keys with weights: ``[sigmoid, sft]``."""
    several = re.split(r"\s*[,+]\s*", value) if isinstance(value, str) else value
    if not isinstance(several, list) or len(several) < 2 or not any(get_origin(kind) is dict for kind in kinds):
        return ""
    ours = [item if item in _choices(kinds) else our_value(name, str(item)) for item in several]
    return f" Write {{{', '.join(f'{item}: 1' for item in ours)}}}." if all(ours) else ""


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


def replacement(key: str, trainer_fields: TrainerFields | None) -> str:
    """What to do instead of an unknown setting that has no counterpart, as it goes on after its name; else empty."""
    text = in_its_place(key)
    of_trainer = text and key not in _ELSEWHERE and trainer_fields is not None and key in trainer_fields()
    return "" if of_trainer else text


def meant(unknown: KeyPath, paths: Sequence[KeyPath], trainer_fields: TrainerFields | None) -> list[KeyPath]:
    """Which settings an unknown one may stand for, the likeliest first: one of the same section by a like name, one of
    another section, one that other tools call so, or one of the Trainer's. Those with the same last name are in another
    place, the others slips.

    ``paths`` are the recipe's settings; without ``trainer_fields`` only the Trainer's other words are known.

    Example:
        >>> meant(("stage2", "temperatures"), known_paths(Recipe, ()), None)
        [('stage2', 'cooling', 'temperature')]
    """
    *above, key = unknown
    here = [path for path in paths if path[:-1] == tuple(above)]
    below = [path for path in paths if path[: len(above)] == tuple(above) and path not in here]
    trainer = next(
        (place for cut in range(len(above), -1, -1) if (place := (*above[:cut], "trainer")) in paths),
        None,
    )
    other = tuple((our_name(key) or "").split("."))
    if other in paths and other[-1] != key:
        return [other]
    if near := _near(key, here, cutoff=0.8):
        return near
    if same := [path for path in below if path[-1] == key] or [path for path in paths if path[-1] == key]:
        return same[:3]
    if trainer is not None and (name := trainer_name(key)) is not None:
        return [(*trainer, name)]
    known = [*trainer_fields()] if trainer is not None and trainer_fields is not None else []
    if trainer is not None and key in known:
        return [(*trainer, key)]
    of_trainer = [(*trainer, name) for name in known] if trainer is not None else []
    return _near(key, below, cutoff=0.8) or _near(key, of_trainer, cutoff=0.8) or _near(key, paths, cutoff=0.8)


def _near(key: str, paths: Sequence[KeyPath], *, cutoff: float) -> list[KeyPath]:
    """The settings whose last name is most like a key: one name, which several sections may have."""
    near = difflib.get_close_matches(key, [path[-1] for path in paths], n=1, cutoff=cutoff)
    return [path for path in paths if path[-1] in near]


def example(path: KeyPath, *, trainer_fields: TrainerFields | None) -> str:
    """A value that a setting may have, as the command line takes it: its default, or one of its type.

    Example:
        >>> example(("stage2", "beta"), trainer_fields=None), example(("stage2",), trainer_fields=None)
        ('0.1', '{}')
    """
    section: type | None = Recipe
    hint: object = None
    for part in path:
        field, hint = section_fields(section).get(part, (None, None)) if section is not None else (None, None)
        section = section_type(hint)
    if "trainer" in path[:-1]:
        place = path.index("trainer") + 1
        hint = trainer_fields().get(path[place]) if trainer_fields is not None and len(path) == place + 1 else None
    elif field is not None and isinstance(field.default, (str, bool, int, float)):
        return field.default if isinstance(field.default, str) else shown(field.default)
    kinds = _alternatives(hint)
    if section is not None or any((get_origin(kind) or kind) is dict for kind in kinds):
        return "{}"
    if choices := _choices(kinds):
        return str(choices[0])
    plain = {float: "0.1", int: "1", bool: "true", str: "TEXT"}
    return next((plain[kind] for kind in kinds if kind in plain), "VALUE")


def own_of_stages(values: Mapping[str, object], key: str) -> list[str]:
    """Full names of a setting of the Trainer in the stages of a recipe that have it."""
    found = []
    for stage in ("stage1", "stage2"):
        section = values.get(stage)
        trainer = section.get("trainer") if isinstance(section, Mapping) else None
        if isinstance(trainer, Mapping) and key in trainer:
            found.append(f"{stage}.trainer.{key}")
    return found


def _advice_on_unknown(unknown: KeyPath, found: Sequence[KeyPath], paths: Sequence[KeyPath]) -> str:
    """What to do with an unknown key, as it goes on after its full name."""
    names = [".".join(path) for path in found]
    if not found:
        here = [path[-1] for path in paths if path[:-1] == unknown[:-1]]
        return _suggestion(unknown[-1], here, "".join(f"{part}." for part in unknown[:-1]), _known_here(here))
    if found[0][-1] != unknown[-1]:
        quoted = [f"'{name}'" for name in names]
        return f" - did you mean {' or '.join(quoted)}?"
    if found[0][-2:-1] == ("trainer",):
        return f", which is a setting of the Trainer. Write it in {'.'.join(found[0][:-1])}."
    if len(found[0]) == 1:
        return ". Write it at the top of the recipe."
    below = all(path[: len(unknown) - 1] == unknown[:-1] for path in found)
    return f". It belongs {'further down' if below else 'in another section'}: {' or '.join(names)}."


def _known_here(here: Collection[str]) -> str:
    return f". Known here: {', '.join(here)}." if here else "."


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
    number = r"[-+]?[\d.,]*\d[\d.,]*([eE][-+]?\d+)?%?|\d+\s*[x*]\s*\d+"
    if not {float, int} & {*kinds} or not re.fullmatch(number, text):
        return ""
    if product := re.fullmatch(r"(\d+)\s*[x*]\s*(\d+)", text):  # of pixels
        return f" Write {int(product[1]) * int(product[2])}."
    decimal = text.replace(",", "") if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+", text) else text.replace(",", ".")
    try:
        meant = float(decimal.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return ""
    return f" Write {meant:g}." if "," in text or "%" in text else f" Write {text}, without quotes."


def _for_example(kinds: Sequence[object], otherwise: str = "") -> str:
    """A number to write, where nothing but a number may stand, ``otherwise`` a sentence that says one."""
    plain = {float: "0.1", int: "1"}
    others = {*kinds} - {*plain, type(None)}
    if otherwise and not others:
        return f" {otherwise}"
    return "" if others else next((f" Write one, such as {plain[kind]}." for kind in kinds if kind in plain), "")


def _near_choice(value: object, choices: Sequence[object], setting: str) -> str:
    text, names = str(value), [str(choice) for choice in choices]
    if names and setting.rpartition(".")[2] == "loss" and (near_loss := NEAR_LOSSES.get(text.lower())):
        return f" {near_loss}."
    near = [ours] if (ours := our_value(setting, text)) in names else difflib.get_close_matches(text, names, n=1)
    near = near or [name for name in names if name[:4] == text[:4]]  # adamx, of adamw_torch and 40 others
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


_MOST_CHOICES = 20
"""Of a setting, that a message lists."""


def _describe_one(part: object) -> str:
    if get_origin(part) is Literal:
        choices = [choice if isinstance(choice, str) else shown(choice) for choice in get_args(part)]
        more = f" and {len(choices) - _MOST_CHOICES} more" if len(choices) > _MOST_CHOICES else ""
        return f"one of {', '.join(choices[:_MOST_CHOICES])}{more}" if len(choices) > 1 else choices[0]
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
    **dict.fromkeys(("hub_token", "push_to_hub_token"), "It would stand in the run's files. Put it into HF_TOKEN."),
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
_MUST_BE: Mapping[str, Limit] = {
    "per_device_train_batch_size": limit(at_least=1, advice="Write the number of rows in a step."),
    "per_device_eval_batch_size": limit(at_least=1, advice="Write the number of rows in a step."),
    "gradient_accumulation_steps": limit(at_least=1, advice="Write 1 for no accumulation."),
    "dataloader_num_workers": limit(at_least=0, advice="Write 0 to load rows in the training process."),
    "learning_rate": limit(above=0, at_most=1, advice="Write a rate such as 1e-5; with 0 nothing is learned."),
    "save_total_limit": limit(at_least=1, advice="Write null to keep all checkpoints."),
}
"""Limits where the Trainer itself would fail late or not at all."""


def check_trainer_section(
    section: Mapping[str, object], known: Mapping[str, object], where: Where, *, path: KeyPath = ("trainer",)
) -> None:
    """Refuse, in a line each, keys that do not exist or that the recipe sets itself, and values of another type than
    declared. ``known`` are the training arguments' fields with their types."""
    problems = []
    prefix = "".join(f"{part}." for part in path)
    paths = known_paths(Recipe, ())
    for key, value in section.items():
        full, place = f"{prefix}{key}", where((*path, key))
        if key in _ELSEWHERE:
            problems.append(f"{place}: '{full}' is not set here. {_ELSEWHERE[key]}")
        elif key not in known:
            problems.append(f"{place}: unknown key '{full}'{_advice_on_argument(key, known, path, paths)}")
        elif wrong := wrong_argument(key, value, known[key]):
            problems.append(f"{place}: {full} is {wrong}")
    if problems:
        raise ConfigError("\n".join(problems))


def _advice_on_argument(key: str, known: Collection[str], path: KeyPath, paths: Sequence[KeyPath]) -> str:
    """What to do with an unknown key of a ``trainer`` section, as it goes on after its full name."""
    prefix = "".join(f"{part}." for part in path)
    if (name := trainer_name(key)) is not None:
        return f" - did you mean '{prefix}{name}'?"
    if elsewhere := in_its_place(key):
        return elsewhere
    if (ours := our_name(key)) is not None and (*ours.split("."),) in paths and not ours.endswith(f".{key}"):
        return f" - did you mean '{ours}'?"
    same = [found for found in paths if found[-1] == key]
    if same or not difflib.get_close_matches(key, list(known), n=1):
        of_stage = [found for found in same if found[0] == path[0]]
        found = (of_stage or same)[:3] or _near(key, paths, cutoff=0.8)
        if found:
            return _advice_on_unknown((*path, key), found, paths)
    otherwise = ". It is not a setting of transformers.TrainingArguments; see its documentation."
    return _suggestion(key, known, prefix, otherwise)


def wrong_argument(key: str, value: object, hint: object) -> str:
    """What is wrong with the value of a training argument, as the end of a sentence; empty if nothing is."""
    if key in _FREE:
        return ""
    bounds = _MUST_BE.get(key)
    enumerated = any(isinstance(kind, type) and issubclass(kind, Enum) for kind in _alternatives(hint))
    # an enumeration's texts rule out any other text
    kinds = tuple(_as_written(kind) for kind in _alternatives(hint) if not (enumerated and kind is str))
    adapter: TypeAdapter[Any] = TypeAdapter(Union[kinds], config=ConfigDict(strict=True))  # type: ignore[arg-type]  # noqa: UP007
    try:
        adapter.validate_python(value)
    except ValidationError:
        return f"{shown(value)}, but {_wanted(key, value, kinds, bounds.advice if bounds is not None else '')}"
    if bounds is not None and isinstance(value, (int, float)) and not bounds.allows(value):
        return f"{value}, but must be {bounds}. {bounds.advice}"
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


def _wanted(key: str, value: object, kinds: Sequence[object], otherwise: str) -> str:
    """What a value must be that fits none of the types, and what may have been meant, ``otherwise`` what to write."""
    for kind in kinds:
        if get_origin(kind) is type(value):
            return f"its values must be {describe_type(get_args(kind)[-1])}."
    choices = _choices(kinds)
    bare = value is False and "no" in choices
    number = f" {otherwise}" if otherwise else _for_example(kinds)
    advice = _near_choice(value, choices, key) or _as_number(value, kinds) or number
    advice = " YAML reads a bare no as false: write 'no', in quotes." if bare else advice
    writable = (kind for kind in kinds if get_origin(kind) is not Annotated)  # only Python can make an instance
    named = ("a list" if get_origin(kind) is list else describe_type(kind) for kind in writable)
    return f"must be {' or '.join(named)}.{advice}"
