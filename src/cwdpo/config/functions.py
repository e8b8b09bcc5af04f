"""Functions that users name in settings, as ``module:function``."""

import importlib
from typing import Any

from cwdpo.errors import ConfigError


def load_function(name: str, *, setting: str, advice: str) -> Any:
    """The function of this name; where there is none, a ConfigError of the ``setting``, with ``advice`` on it."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{setting} is {name}, which cannot be imported ({error}). {advice}") from error
    if not callable(found):
        raise ConfigError(f"{setting} is {name}, which is a {type(found).__name__} and not a function.")
    return found
