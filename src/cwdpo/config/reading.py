"""Read a recipe file, with what the command line changes, and write one that reads back equal."""

import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwdpo.config import located_yaml
from cwdpo.config.checking import Where, build
from cwdpo.config.overrides import Override, apply_override, parse_overrides
from cwdpo.config.recipe import CoolingConfig, ProbesConfig, Recipe, Stage1Config
from cwdpo.config.trainer_section import check_trainer_section
from cwdpo.errors import ConfigError

logger = logging.getLogger(__name__)

_LARGEST = 1_000_000  # bytes; a model or a data file given by mistake should not be parsed first
_PATHS = (("data", "train"), ("data", "eval"), ("data", "image_root"))
_IDLE = {"plain": ("penalty", "ceiling", "epsilon"), "constrained": ("epsilon",), "smoothed": ("ceiling",)}


def read_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    trainer_fields: Callable[[], Mapping[str, Any]] | None = None,
) -> Recipe:
    """Read a recipe and check every key and value.

    Relative paths of data in the file start at the file's directory, and those in overrides at the working directory;
    ``model.name_or_path`` does so too where that directory exists, and is a hub name otherwise. ``output_dir`` always
    starts at the working directory.

    Args:
        path: the YAML file.
        overrides: settings that replace the file's, by full or unambiguous name, or words of a command line.
        trainer_fields: gives the names that ``trainer`` sections may hold and their types, asked once all else is
            right, as only transformers knows them and takes seconds to import; None leaves those sections unchecked.

    Raises:
        ConfigError: one line for each mistake, starting with ``file:line`` or the override's name.

    Warns through ``logging`` of settings that have no effect in this recipe.
    """
    path = Path(path)
    name = str(path)
    located = located_yaml.load(_text(path), name)
    values = located.values
    _resolve_paths(values, path.absolute().parent)
    changes = parse_overrides(overrides)
    for change in changes:
        apply_override(values, _resolved(change))

    def where(setting: located_yaml.Path) -> str:
        return _where(setting, changes, located.lines, name)

    recipe = build(Recipe, values, where)
    if trainer_fields is not None:
        known = trainer_fields()
        for section in (("trainer",), ("stage1", "trainer"), ("stage2", "trainer")):
            _check_trainer(recipe, section, known, where)
    for message in settings_without_effect(recipe):
        logger.warning("%s: %s", name, message)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults written out; :func:`read_recipe` reads it back equal."""
    return located_yaml.dump(dataclasses.asdict(recipe))


def settings_without_effect(recipe: Recipe) -> list[str]:
    """A sentence for each setting that was changed from its default, yet does nothing in this recipe."""
    messages = []
    if recipe.stage1 is not None:
        defaults = {field.name: field.default for field in dataclasses.fields(Stage1Config)}
        for key in _IDLE[recipe.stage1.objective]:
            if getattr(recipe.stage1, key) != defaults[key]:
                messages.append(f"stage1.{key} has no effect with objective {recipe.stage1.objective}. Take it out.")
    probes = recipe.probes
    if probes is not None and not probes.stop_on and probes.patience != ProbesConfig().patience:
        messages.append("probes.patience has no effect without probes.stop_on. Name findings there, or take it out.")
    cooling = recipe.stage2.cooling if recipe.stage2 is not None else None
    if cooling is not None and cooling.constant is not None:
        plain = CoolingConfig()
        for key in ("floor", "temperature", "detach"):
            if getattr(cooling, key) != getattr(plain, key):
                messages.append(f"stage2.cooling.{key} has no effect beside cooling.constant. Take one of them out.")
    if recipe.negatives is not None and recipe.stage2 is None:
        messages.append("negatives has no effect without stage2. Take it out, or add `stage2: {}`.")
    return messages


def _check_trainer(recipe: Recipe, section: located_yaml.Path, known: Mapping[str, Any], where: Where) -> None:
    owner = recipe if len(section) == 1 else getattr(recipe, section[0])
    if owner is not None:
        check_trainer_section(owner.trainer, known, lambda key: where((*section, key)), name=".".join(section))


def _where(setting: located_yaml.Path, changes: Sequence[Override], lines: Mapping[Any, int], name: str) -> str:
    """The last override that set this, or else its line, or that of the nearest section above it."""
    for change in reversed(changes):
        if change.path == setting[: len(change.path)]:
            return change.where
    for length in range(len(setting), 0, -1):
        if setting[:length] in lines:
            return f"{name}:{lines[setting[:length]]}"
    return f"{name}:1"


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


def _near_files(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f" There is no directory {parent} either."
    names = sorted(item.name for item in parent.iterdir() if item.suffix in (".yaml", ".yml") and item.name[0] != ".")
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    return f" Did you mean {' or '.join(str(parent / item) for item in near)}?" if near else ""


def _resolve_paths(values: dict[str, Any], base: Path) -> None:
    """Make the data paths absolute, in place; values of a wrong type stay, for the checks to name."""
    for section, key in _PATHS:
        inner = values.get(section)
        if isinstance(inner, dict) and key in inner:
            inner[key] = _absolute(inner[key], base)
    model = values.get("model")
    if isinstance(model, dict) and "name_or_path" in model:
        model["name_or_path"] = _model_directory(model["name_or_path"], base)


def _resolved(change: Override) -> Override:
    value = change.value
    if change.path in _PATHS:
        value = _absolute(value, Path.cwd())
    elif change.path == ("model", "name_or_path"):
        value = _model_directory(value, Path.cwd())
    elif isinstance(value, dict) and len(change.path) == 1:
        value = {**value}
        _resolve_paths({change.path[0]: value}, Path.cwd())
    return dataclasses.replace(change, value=value)


def _absolute(value: Any, base: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, base) for item in value]
    return str(base / Path(value).expanduser()) if isinstance(value, str) and value else value


def _model_directory(value: Any, base: Path) -> Any:
    directory = _absolute(value, base)
    return directory if isinstance(directory, str) and Path(directory).is_dir() else value
