"""May this recipe continue that run? Only if it is the same experiment."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cwdpo.config.reading import read_recipe
from cwdpo.config.recipe import Recipe
from cwdpo.errors import ConfigError

logger = logging.getLogger(__name__)

_PROBE_SET = ("probes.rows", "probes.groups")
_FIXED = ("model.", "data.", "seed", "stage1.objective", "stage2.beta", "stage2.cooling", "negatives", *_PROBE_SET)
"""Settings that make a run what it is. Others (steps, logging, saving) may change on the way, with a warning."""

_OF_AUTO = ("probes.every", "probes.tolerance")
"""Settings that choose the negatives where probes drive the curriculum."""

_FREE = ("stage2.cooling.floor", "output_dir", "negatives.on_error", "negatives.endpoint")
"""Settings that may: the floor is measured, and how to go on after an error is what an error makes one think about."""


def check_same_run(saved: Path, recipe: Recipe) -> None:
    """Compare a recipe with the one that a run began with.

    Raises:
        ConfigError: they differ in what may not change within one run; the message names the settings.
    """
    before = dict(_flat(dataclasses.asdict(read_recipe(saved))))
    now = dict(_flat(dataclasses.asdict(recipe)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    changed = [key for key in changed if key not in _FREE]
    is_driven = recipe.negatives is not None and recipe.negatives.curriculum == "auto"
    refused = [key for key in changed if key.startswith((*_FIXED, *(_OF_AUTO if is_driven else ())))]
    if refused:
        key = refused[0]
        raise ConfigError(
            f"{saved}: the run began with {key} = {before.get(key)!r}, not {now.get(key)!r}"
            f"{_and_more(refused)}. Resume with the same setting, or give another --output_dir."
        )
    for key in changed:
        logger.warning("resuming with %s = %r; the run began with %r", key, now.get(key), before.get(key))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _and_more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more: {', '.join(keys[1:])})" if len(keys) > 1 else ""
