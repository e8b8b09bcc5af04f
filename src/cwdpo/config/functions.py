"""Functions that users name in settings, as ``module:function``."""

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from cwdpo.errors import ConfigError


def load_function(name: str, *, setting: str, advice: str, called: str = "") -> Any:
    """The function of this name, in a module that is installed or lies in the working directory.

    Where there is none, or one that cannot be ``called`` with these arguments (``rows, seed=``), a ConfigError of the
    ``setting``, with ``advice`` on it.
    """
    module, _, function = name.partition(":")
    if meant := name_for_file(name):
        raise ConfigError(f"{setting} is {name}, a file. {meant}", setting=setting)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module of the user's can raise anything while it is imported
        raise ConfigError(
            f"{setting} is {name}, which cannot be imported ({error}). {advice}", setting=setting
        ) from error
    if not callable(found):
        kind = type(found).__name__
        article = "an" if kind[0] in "aeiou" else "a"
        raise ConfigError(f"{setting} is {name}, which is {article} {kind} and not a function.", setting=setting)
    arguments = [each.strip() for each in called.split(",") if each.strip()]
    named = {each[:-1]: None for each in arguments if each.endswith("=")}
    try:
        inspect.signature(found).bind(*arguments[: len(arguments) - len(named)], **named)
    except TypeError as error:
        if arguments:
            example = ", ".join(f"{each}..." if each.endswith("=") else each for each in arguments)
            raise ConfigError(
                f"{setting} is {name}, which is called as {function}({example}): {error}.", setting=setting
            ) from error
    except ValueError:
        pass  # some functions of C have no signature
    return found


def name_for_file(name: str) -> str:
    """What to write for a function that was named by its file; empty where it was not.

    Example:
        >>> name_for_file("my/rules.py:better")
        'Write rules:better, and put its directory in PYTHONPATH: my.'
        >>> name_for_file("rules:better")
        ''
    """
    file, _, function = name.partition(":")
    path = Path(file)
    if path.suffix != ".py":
        return ""
    where = "" if path.parent == Path() else f", and put its directory in PYTHONPATH: {path.parent}"
    return f"Write {path.stem}:{function or 'FUNCTION'}{where}."
