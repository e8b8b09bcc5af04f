"""Recipe files: read one, with what the command line changes, and write one that reads back equal."""

import dataclasses
import difflib
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from cwdpo.config import located_yaml
from cwdpo.config.checking import (
    TrainerFields,
    build,
    check_trainer_section,
    example,
    is_text,
    known_paths,
    meant,
    own_of_stages,
    replacement,
    section_fields,
    section_type,
    shown,
    trainer_name,
)
from cwdpo.config.foreign import describe_foreign, recognise
from cwdpo.config.located_yaml import KeyPath, load_value
from cwdpo.config.recipe import CoolingConfig, ProbesConfig, Recipe, Stage1Config
from cwdpo.contents import RECIPE, kind_of, refusal
from cwdpo.errors import ConfigError, UserError, path_advice, shortened
from cwdpo.records import HUB, STAGES, RunDirectory, Stage

logger = logging.getLogger(__name__)

_LARGEST = 1_000_000  # bytes; a model or a data file given by mistake should not be parsed first
_MODEL: KeyPath = ("model", "name_or_path")
_IMAGE_ROOT: KeyPath = ("data", "image_root")
_PATHS: tuple[KeyPath, ...] = (
    *(("data", "train"), ("data", "eval"), _IMAGE_ROOT, _MODEL),
    *(("evaluate", "data"), ("evaluate", "vocabulary")),
)
_PRESETS: Mapping[str, Mapping[KeyPath, Any]] = {
    "paper": {("stage2", "cooling", "floor"): "mean", ("negatives",): {}},
}
"""What each preset says where the recipe does not."""

_IDLE = {"plain": ("penalty", "ceiling", "epsilon"), "constrained": ("epsilon",), "smoothed": ("ceiling",)}


def read_recipe(
    path: str | Path,
    overrides: Mapping[str, object] | Sequence[str] = (),
    *,
    trainer_fields: TrainerFields | None = None,
    warn: bool = True,
) -> Recipe:
    """Read a recipe and check every key and value.

    Relative paths of data in the file start at the file's directory, and those in overrides at the working directory;
    ``model.name_or_path`` does so too where that directory exists, and is a hub name otherwise. ``output_dir`` always
    starts at the working directory.

    Args:
        overrides: settings that replace the file's, by full or unambiguous name, or words of a command line.
        trainer_fields: gives the names that ``trainer`` sections may hold and their types, asked once all else is
            right or a key is unknown, as only transformers knows them and takes seconds to import; None leaves those
            sections unchecked.
        warn: whether settings that have no effect in this recipe are warned of through ``logging``.

    A ConfigError has one line for each mistake, starting with ``file:line`` or the override's name.
    """
    path = Path(path)
    name = str(path)
    _refuse_other_files(path)
    text = _text(path)
    if path.suffix.lower() == ".json":
        text = re.sub(r"^\t+", lambda tabs: " " * len(tabs[0]), text, flags=re.MULTILINE)  # all that YAML lacks of JSON
    located = located_yaml.load(text, name, example=functools.partial(example, trainer_fields=trainer_fields))
    values = located.values
    foreign = recognise(values)
    if foreign is not None:
        raise ConfigError(describe_foreign(foreign, values, name))
    _resolve_paths(values, path.absolute().parent)
    changes = _parsed(overrides, values, trainer_fields)
    for change in changes:
        _apply(change, values)
    _apply_preset(values)

    def where(setting: KeyPath) -> str:
        """The last override that set this, or else its line, or that of the nearest section above it."""
        for change in reversed(changes):
            if change.path == setting[: len(change.path)]:
                return change.where
        above = (setting[:length] for length in range(len(setting), 0, -1))
        return f"{name}:{next((located.lines[key] for key in above if key in located.lines), 1)}"

    recipe = build(Recipe, values, where, trainer_fields=trainer_fields)
    if hidden := [*_hidden(recipe, changes, where), *_switched_off(recipe, changes, where)]:
        raise ConfigError("\n".join(dict.fromkeys(hidden)))
    if trainer_fields is not None:
        known = trainer_fields()
        check_trainer_section(recipe.trainer, known, where)
        for stage, settings in recipe.stages.items():
            check_trainer_section(settings.trainer, known, where, path=(stage, "trainer"))
    for message in settings_without_effect(recipe) if warn else ():
        logger.warning("%s: %s", name, message)
    return recipe


@contextmanager
def naming_lines(path: str | Path, overrides: Sequence[str] = ()) -> Iterator[None]:
    """What is refused in here begins with the place of the setting that it is about, as mistakes in the recipe do."""
    try:
        yield
    except UserError as error:
        place = _place_of(error.setting, Path(path), overrides) if error.setting is not None else ""
        if place:
            error.args = (f"{place}: {error}",)
        raise


def _place_of(setting: str, path: Path, overrides: Sequence[str]) -> str:
    """``recipe.yaml:4`` or ``--stage2.beta``; empty where no such setting is given, or several are."""
    try:
        located = located_yaml.load(_text(path), str(path))
        changes = _parsed(overrides, located.values, None)
    except ConfigError:  # the file is another by now
        return ""
    places = {key: f"{path}:{line}" for key, line in located.lines.items()}
    places |= {change.path: change.where for change in changes}
    wanted = tuple(setting.split("."))
    found = [place for key, place in places.items() if key[-len(wanted) :] == wanted]
    return found[0] if len(found) == 1 else ""


def known_settings() -> set[str]:
    """The full names of all settings and sections, such as ``stage2.cooling``."""
    return {".".join(path) for path in known_paths(Recipe, ())}


def nested(settings: Mapping[str, object]) -> dict[str, Any]:
    """Sections and their keys, of settings by full name.

    Example:
        >>> nested({"seed": 0, "stage2.beta": 0.1})
        {'seed': 0, 'stage2': {'beta': 0.1}}
    """
    values: dict[str, Any] = {}
    for name, value in settings.items():
        *above, last = name.split(".")
        inner = values
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; :func:`read_recipe` reads it back equal."""
    return located_yaml.dump(dataclasses.asdict(recipe))


def settings_without_effect(recipe: Recipe) -> list[str]:
    """A sentence for each setting that was changed from its default, yet does nothing in this recipe."""
    messages = []
    if recipe.stage1 is not None:
        for key in _IDLE[recipe.stage1.objective]:
            if getattr(recipe.stage1, key) != getattr(Stage1Config, key):
                messages.append(f"stage1.{key} has no effect with objective {recipe.stage1.objective}. Take it out.")
    probes = recipe.probes
    if probes is not None and not probes.stop_on and probes.patience != ProbesConfig.patience:
        messages.append("probes.patience has no effect without probes.stop_on. Name findings there, or take it out.")
    cooling = recipe.stage2.cooling if recipe.stage2 is not None else None
    if cooling is not None and cooling.constant is not None:
        for key in ("floor", "temperature", "detach"):
            if getattr(cooling, key) != getattr(CoolingConfig, key):
                messages.append(f"stage2.cooling.{key} has no effect beside cooling.constant. Take one of them out.")
    if recipe.negatives is not None and recipe.stage2 is None:
        messages.append("negatives has no effect without stage2. Take it out, or add `stage2: {}`.")
    return messages


@dataclass(frozen=True)
class _Override:
    """One setting that replaces what the recipe says."""

    path: KeyPath
    value: Any
    where: str
    """As the user wrote it, for messages: ``--beta``."""


def _hidden(recipe: Recipe, changes: Sequence[_Override], where: Callable[[KeyPath], str]) -> list[str]:
    """A sentence for each setting of the shared ``trainer`` among the changes that the recipe's own stages hide; a
    stage's setting that is a change too is meant so."""
    problems = []
    for change in changes:
        section, *below = change.path
        if section != "trainer":
            continue
        for key in below[:1] or (change.value if isinstance(change.value, Mapping) else ()):
            value = recipe.trainer.get(key)
            hiding = [
                stage
                for stage, settings in recipe.stages.items()
                if settings.trainer.get(key, value) != value
                and not any(other.path == (stage, "trainer", key)[: len(other.path)] for other in changes)
            ]
            if not hiding:
                continue
            named = " and ".join(f"{where((stage, 'trainer', key))} sets {stage}.trainer.{key}" for stage in hiding)
            options = [f"--{stage}.trainer.{key} {shown(value)}" for stage in recipe.stages]
            if len(hiding) == len(recipe.stages):
                advice = f"has no effect: {named}. Write {' '.join(options)}."
            else:
                advice = (
                    f"has no effect on {hiding[0]}: {named}. Write {' '.join(options)} for both stages, or name the "
                    "stage that you mean."
                )
            problems.append(f"{change.where} {advice}")
    return list(dict.fromkeys(problems))


_SWITCHES: Mapping[str, tuple[str, object]] = {
    "num_train_epochs": ("max_steps", -1),
    "save_steps": ("save_strategy", "steps"),
    "eval_steps": ("eval_strategy", "steps"),
    "logging_steps": ("logging_strategy", "steps"),
}
"""Settings of the Trainer that count only where another one has this value."""


def _switched_off(recipe: Recipe, changes: Sequence[_Override], where: Callable[[KeyPath], str]) -> list[str]:
    """A sentence for each change of a ``trainer`` setting that another setting there makes idle."""
    problems = []
    for change in changes:
        section, key = change.path[0], change.path[-1]
        if key not in _SWITCHES or change.path[-2:-1] != ("trainer",):
            continue
        switch, needed = _SWITCHES[key]
        idle: dict[Stage, KeyPath] = {}
        for stage, settings in recipe.stages.items():
            value = settings.trainer.get(switch, recipe.trainer.get(switch, needed))
            switches_off = _is_above_0(value) if switch == "max_steps" else value != needed
            if section in ("trainer", stage) and switches_off:
                idle[stage] = (stage, "trainer", switch) if switch in settings.trainer else ("trainer", switch)
        if idle:
            names = list(dict.fromkeys(idle.values()))
            set_there = " and ".join(f"{where(name)} sets {'.'.join(name)}" for name in names)
            advice = " ".join(f"--{'.'.join(name)} {needed}" for name in names)
            problems.append(
                f"{change.where} has no effect on {' and '.join(idle)}: {set_there}, which counts instead. Write "
                f"{advice} too, or leave {change.where} out."
            )
    return problems


def _is_above_0(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def _parsed(
    given: Mapping[str, object] | Sequence[str], values: Mapping[str, Any], trainer_fields: TrainerFields | None
) -> list[_Override]:
    """Overrides from Python (names and values) or from words such as ``["--beta", "0.2", "--stage2.cooling=null"]``.

    ``values`` are those of the recipe.
    """

    def full_path(name: str, text: str) -> KeyPath:
        return _full_path(name, text, values, trainer_fields)

    if isinstance(given, Mapping):
        return [_Override(full_path(name, shown(value)), value, f"--{name}") for name, value in given.items()]
    for_example = functools.partial(example, trainer_fields=trainer_fields)
    pairs = _pairs(given, lambda name: for_example(full_path(name, "VALUE")))
    paths = [(name, full_path(name, text), text) for name, text in pairs]
    return [_Override(path, _value(text, path, f"--{name}"), f"--{name}") for name, path, text in paths]


def _value(text: str, path: KeyPath, name: str) -> Any:
    """A value of the command line: YAML, but text as it was typed where the setting is a text, or the YAML is one.

    So ``--output_dir "runs/try #2"`` keeps what YAML would take for a comment. Quotes that YAML would take off go.
    """
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    section: type | None = Recipe
    hint: object = None
    for part in path:
        _, hint = section_fields(section).get(part, (None, None)) if section is not None else (None, None)
        section = section_type(hint)
    if not quoted and is_text(hint) and not (text.startswith("[") and hint not in (str, str | None)):
        return None if text == "null" and hint is not str else text
    value = load_value(text, name)
    return text if isinstance(value, str) and not quoted else value


def _apply(override: _Override, values: dict[str, Any]) -> None:
    """Put one override into a recipe's plain values, in place; refused where its section is left out."""
    section: type | None = Recipe
    here = values
    for depth, name in enumerate(override.path[:-1], start=1):
        off = ".".join(override.path[:depth])
        field, hint = section_fields(section)[name] if section is not None else (None, None)
        if here.get(name) is None:
            if name in here or (field is not None and field.default is not MISSING):
                trainer = trainer_name(override.where.removeprefix("--"))
                advice = (
                    f"To switch it on, put --{off} {{}} before it, or leave {override.where} out."
                    if trainer is None
                    else f"The Trainer's is --trainer.{trainer}."
                )
                raise ConfigError(f"{override.where} has no effect: the recipe has no {off}. {advice}")
            here[name] = {}
        if not isinstance(here[name], dict):
            raise ConfigError(
                f"{override.where} cannot be set: {off} is {here[name]!r}, not a section of keys and values."
            )
        here, section = here[name], section_type(hint)
    here[override.path[-1]] = _resolved(override.path, override.value, Path.cwd())


def _apply_preset(values: dict[str, Any]) -> None:
    """Put the settings of ``preset`` into a recipe's plain values, in place, where they are left out and stage 2 is
    there; a section that is null stays so, and a wrong value stays for the checks to name."""
    preset = values.get("preset")
    if not isinstance(preset, str) or not isinstance(values.get("stage2"), dict):
        return
    for path, value in _PRESETS.get(preset, {}).items():
        here: Any = values
        for name in path[:-1]:
            here = here.setdefault(name, {}) if isinstance(here, dict) else None
        if isinstance(here, dict):
            here.setdefault(path[-1], value)


def _pairs(words: Sequence[str], example_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """Names and texts; ``example_of`` a name is a value that it may have."""
    pairs, queue = [], list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if name in _SETTERS and word.startswith("-"):
            following = (text or (queue[0] if queue else "")).lstrip("-")
            key, gives_value, value = following.partition("=")
            several = queue[0 if text else 1 :][:1]
            is_path = not all(part.isidentifier() for part in key.split("."))
            if name == "-o" and key and not gives_value and (is_path or not several or several[0][:2] == "--"):
                raise ConfigError(f"-o is not an option. Write --output_dir {following}.")
            raise ConfigError(f"{word.partition('=')[0]} is not needed: write --{key or 'KEY'} {value or 'VALUE'}.")
        if not word.startswith("--") or not name:
            raise ConfigError(f"{word!r} is not a setting. {_as_setting(word, queue)}")
        if not equals:
            if not queue or queue[0].startswith("--"):
                such_as = example_of(name.replace("-", "_"))
                raise ConfigError(f"--{name} has no value. Write one, such as --{name} {such_as}.")
            text = queue.pop(0)
        pairs.append((name.replace("-", "_"), text))
    return pairs


_SETTERS = ("set", "override", "-set", "-s", "-o")
"""Options with which other tools begin a setting."""


_FLAGS = ("resume", "help")
"""Options of ``cwdpo train`` that have no value."""


def _as_setting(word: str, following: Sequence[str]) -> str:
    """How to write a setting whose dashes were left out, or what else stands among the settings."""
    if word.endswith((".yaml", ".yml")):
        return "`cwdpo train` runs one recipe at a time."
    if Path(word).is_dir():
        return "A run's directory is --output_dir; --resume takes no path: it goes on from that run's last checkpoint."
    name, equals, text = word.lstrip("-").partition("=")
    if name in _FLAGS:
        return f"Write --{name}."
    if all(part.isidentifier() for part in name.split(".")) and (equals or following):
        return f"Write --{name} {text if equals else following[0]}."
    return "Write settings after the recipe as --key value; a run's directory is --output_dir."


def _full_path(name: str, text: str, values: Mapping[str, Any], trainer_fields: TrainerFields | None) -> KeyPath:
    """The setting of a full or unambiguous name; an unknown one is refused, with what to write for its ``text``."""
    wanted = tuple(name.split("."))
    known = known_paths(Recipe, ())
    below_trainer = (path[-1] == "trainer" and path == wanted[: len(path)] for path in known)
    if wanted in known or any(below_trainer):  # whose keys only transformers knows
        return wanted
    matches = [path for path in known if path[-len(wanted) :] == wanted]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join("--" + ".".join(path) for path in matches)
        raise ConfigError(f"--{name} could be any of {choices}. Write the full name.")
    above = [path for path in known if path[-len(wanted) + 1 :] == wanted[:-1]]
    unknown = (*above[0], wanted[-1]) if len(wanted) > 1 and len(above) == 1 else wanted
    if instead := replacement(wanted[-1], trainer_fields):
        example_of_null = f" As in --{'.'.join(wanted[:-1])} null." if "write null" in instead and wanted[1:] else ""
        raise ConfigError(f"--{name}: unknown setting{instead}{example_of_null}")
    found = meant(unknown, known, trainer_fields)
    found = [each for path in found for each in _of_each_stage(path, values)]
    if not found:  # else `..._batch_size` is near to another
        near = difflib.get_close_matches(name, [".".join(path) for path in known], n=1, cutoff=0.75)
        found = [tuple(path.split(".")) for path in near]
    if not found:
        raise ConfigError(
            f"--{name}: unknown setting. See docs/recipe.md or `cwdpo schema`; a setting of "
            "transformers.TrainingArguments is --trainer.KEY."
        )
    options = [f"--{'.'.join(path)}" for path in found]
    of_each_stage = len(found) > 1 and found[0][-2] == "trainer"
    if found[0][-1] == wanted[-1] or of_each_stage:
        together = " " if of_each_stage else " or "
        advice = f". Write {together.join(f'{option} {shortened(text)}' for option in options)}."
    else:
        quoted = [f"'{option}'" for option in options]
        advice = f" - did you mean {' or '.join(quoted)}?"
    raise ConfigError(f"--{name}: unknown setting{advice}")


def _of_each_stage(path: KeyPath, values: Mapping[str, Any]) -> list[KeyPath]:
    """A setting of the shared ``trainer`` as one of each stage, where the recipe's stages have their own; others as
    they are."""
    if path[0] != "trainer" or not own_of_stages(values, path[-1]):
        return [path]
    return [(stage, *path) for stage in STAGES if isinstance(values.get(stage), dict)]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path}: {path.stat().st_size:,} bytes are too many for a recipe. Give the YAML file.")
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe.{_near_files(path)}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}). Give a recipe, a YAML file.") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text. Save the recipe as UTF-8.") from None


_ROWS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".gz", ".arrow")
_SCRIPTS = (".sh", ".py", ".ipynb")


def _refuse_other_files(path: Path) -> None:
    """Name what was given in place of a recipe: rows, a script, a run or a model."""
    kind = path.suffix.lower()
    if is_recipe_file(path):
        return
    if kind in _ROWS and path.is_file():
        raise ConfigError(
            f"{path}: this is a file of rows, and a recipe is needed. Make one: `cwdpo init {path} --model MODEL`."
        )
    if kind in _SCRIPTS and path.exists():
        raise ConfigError(f"{path}: this is a script, not a recipe (a YAML file). `cwdpo init DATA` makes one.")
    if path.is_file() and kind_of(path) not in ("a file", "a file of a run"):
        raise refusal(path, RECIPE, ConfigError)
    if not path.is_dir():
        return
    if RunDirectory(path).recipe.is_file():
        raise ConfigError(
            f"{path}: this is a run. Continue it with its recipe: `cwdpo train {RunDirectory(path).recipe} "
            f"--output_dir {path} --resume`."
        )
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        raise ConfigError(f"{path}: this is a model. Make a recipe for it: `cwdpo init DATA --model {path}`.")
    recipes = sorted(item.name for item in path.iterdir() if item.suffix in (".yaml", ".yml"))
    found = f"Did you mean {path / recipes[0]}?" if recipes else "`cwdpo init DATA --model MODEL` makes one."
    raise ConfigError(f"{path}: this is a directory, and a recipe is a YAML file. {found}")


def is_recipe_file(path: Path) -> bool:
    """Whether a file is a recipe and not one of rows: YAML, or JSON with a recipe's keys."""
    kind = path.suffix.lower()
    return kind in (".yaml", ".yml") or (kind == ".json" and path.is_file() and _is_recipe_in_json(path))


def _is_recipe_in_json(path: Path) -> bool:
    """Whether a file holds one JSON object with a recipe's or another tool's keys; a broken object is refused, and
    other things may be rows."""
    if path.stat().st_size > _LARGEST:
        return False
    text = _text(path).strip()
    try:
        values = json.loads(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        is_rows = not text.startswith("{") or error.msg == "Extra data"  # an object a line
        if is_rows:
            return False
        raise ConfigError(
            f"{path}:{error.lineno}: this is not valid JSON: {error.msg}. Correct it there, or save the recipe as YAML."
        ) from None
    keys = {each.name for each in dataclasses.fields(Recipe)}
    if not isinstance(values, dict) or isinstance(values.get("data"), list):  # rows with a frame around them
        return False
    return bool(keys & {*values}) or recognise(values) is not None


def _near_files(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" {path_advice(path)}"
    names = sorted(item.name for item in parent.iterdir() if item.suffix in (".yaml", ".yml") and item.name[0] != ".")
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    return f" Did you mean {' or '.join(str(parent / item) for item in near)}?" if near else f" {path_advice(path)}"


def _resolve_paths(values: dict[str, Any], base: Path) -> None:
    """Make the data paths absolute, in place; values of a wrong type stay, for the checks to name."""
    for section, key in _PATHS:
        inner = values.get(section)
        if isinstance(inner, dict) and key in inner:
            inner[key] = _resolved((section, key), inner[key], base)


def _resolved(path: KeyPath, value: Any, base: Path) -> Any:
    """The value of a setting with its paths absolute; a model stays a hub name where there is no such directory."""
    if path in _PATHS:
        if path == _IMAGE_ROOT and isinstance(value, str) and not (base / value).is_dir():
            value = value.split(os.pathsep) if os.pathsep in value else value  # several, as --image-root has them
        found = _absolute(value, base)
        is_hub_name = path == _MODEL and not (isinstance(found, str) and Path(found).is_dir())
        return value if is_hub_name else found
    if isinstance(value, dict) and len(path) == 1:
        value = {**value}
        _resolve_paths({path[0]: value}, base)
    return value


def _absolute(value: object, base: Path) -> object:
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    if not isinstance(value, str) or not value or value.startswith(HUB):
        return value
    return str(_without_detours(base / Path(value).expanduser()))


def _without_detours(path: Path) -> Path:
    """A path without ``a/../``, where that leads to the same place: behind a link it may lead elsewhere."""
    short = Path(os.path.normpath(path))
    return short if os.path.realpath(short) == os.path.realpath(path) else path
