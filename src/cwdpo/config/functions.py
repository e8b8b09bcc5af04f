"""Functions that users name in settings, as ``module:function``."""

import importlib
import sys
from pathlib import Path
from typing import Any

from cwdpo.errors import ConfigError


def load_function(name: str, *, setting: str, advice: str) -> Any:
    """The function of this name, in a module that is installed or lies in the working directory; where there is none,
    a ConfigError of the ``setting``, with ``advice`` on it."""
    module, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's can raise anything while it is imported
        raise ConfigError(
            f"{setting} is {name}, which cannot be imported ({error}). {advice}", setting=setting
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{setting} is {name}, which is a {type(found).__name__} and not a function.", setting=setting
        )
    return found
