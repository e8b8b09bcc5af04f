"""Settings given on the command line: ``--stage2.beta 0.2`` or, where the last name is unambiguous, ``--beta 0.2``."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from cwdpo.config.checking import section_fields, section_type
from cwdpo.config.located_yaml import Path, load_value
from cwdpo.config.recipe import Recipe
from cwdpo.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One setting that replaces what the recipe says."""

    path: Path
    value: Any
    where: str
    """As the user wrote it, for messages: ``--beta``."""


def parse_overrides(given: Mapping[str, Any] | Sequence[str]) -> list[Override]:
    """Read overrides, either from Python or from the words of a command line.

    Args:
        given: names and values, or words such as ``["--beta", "0.2", "--stage2.cooling=null"]``.

    Raises:
        ConfigError: a word that is no setting, a name that is unknown or ambiguous, or a missing value.

    Example:
        >>> parse_overrides(["--beta", "0.2"])[0].path
        ('stage2', 'beta')
    """
    pairs = given.items() if isinstance(given, Mapping) else _pairs(given)
    return [Override(_full_path(name), value, f"--{name}") for name, value in pairs]


def apply_override(values: dict[str, Any], override: Override) -> None:
    """Put one override into a recipe's plain values, in place.

    Raises:
        ConfigError: it belongs to a section that the recipe leaves out, where it would have no effect.
    """
    section: type | None = Recipe
    here = values
    for depth, name in enumerate(override.path[:-1], start=1):
        off = ".".join(override.path[:depth])
        field, hint = section_fields(section)[name] if section is not None else (None, None)
        if here.get(name) is None:
            left_out = name not in here and (field is None or field.default is MISSING)
            if not left_out:
                raise ConfigError(
                    f"{override.where} has no effect: the recipe has no {off}. "
                    f"To switch it on, put --{off} {{}} before it, or leave {override.where} out."
                )
            here[name] = {}
        if not isinstance(here[name], dict):
            raise ConfigError(
                f"{override.where} cannot be set: {off} is {here[name]!r}, not a section of keys and values."
            )
        here, section = here[name], section_type(hint)
    here[override.path[-1]] = override.value


def _pairs(words: Sequence[str]) -> list[tuple[str, Any]]:
    pairs = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise ConfigError(f"{word!r} is not a setting. Write settings after the recipe as --key value.")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(
                    f"--{name} has no value. Write --{name} VALUE, such as --{name} true or --{name} null."
                )
            text = queue.pop(0)
        pairs.append((name.replace("-", "_"), load_value(text, f"--{name}")))
    return pairs


def _full_path(name: str) -> Path:
    """The one setting that a name means."""
    wanted = tuple(name.split("."))
    known = _known_paths(Recipe, ())
    if wanted in known or _is_free_form(wanted):
        return wanted
    matches = [path for path in known if path[-len(wanted) :] == wanted]
    if len(matches) == 1:
        return matches[0]
    if matches:
        choices = ", ".join("--" + ".".join(path) for path in matches)
        raise ConfigError(f"--{name} could be any of {choices}. Write the full name.")
    by_name = {".".join(path): None for path in known} | {path[-1]: None for path in known}
    near = difflib.get_close_matches(name, list(by_name), n=1, cutoff=0.75)  # else `..._batch_size` is near to another
    advice = f" - did you mean '--{near[0]}'?" if near else f". A setting of the Trainer is --trainer.{name}."
    raise ConfigError(f"--{name}: unknown setting{advice}")


def _known_paths(section: type, above: Path) -> list[Path]:
    paths: list[Path] = []
    for name, (_, hint) in section_fields(section).items():
        paths.append((*above, name))
        inner = section_type(hint)
        if inner is not None:
            paths.extend(_known_paths(inner, (*above, name)))
    return paths


def _is_free_form(path: Path) -> bool:
    """True for what lies below a ``trainer``, whose keys only transformers knows."""
    return any(
        path[: len(top)] == top and len(path) > len(top) for top in _known_paths(Recipe, ()) if top[-1] == "trainer"
    )
