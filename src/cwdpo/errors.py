"""Mistakes of the user: one line that says what to write instead."""

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something the user gave cannot be used. The command line prints the message alone and exits with 2."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        super().__init__(message)
        self.setting = setting
        """The setting of a recipe that it is about, as far as it is known where it is raised: ``stage2.loss``, or
        ``loss``. Who knows the recipe names its line."""


class ConfigError(UserError):
    """A setting is wrong. The message says where it stands and what to write instead."""


class DataError(UserError):
    """A row or an image is wrong. The message names ``file:line`` and says what to write instead."""


@contextmanager
def about(setting: str | None) -> Iterator[None]:
    """What is refused in here is about this setting, unless it names another itself; None names none."""
    try:
        yield
    except UserError as error:
        error.setting = error.setting or setting
        raise


LONGEST_SHOWN = 80
"""Characters of a value that a message shows."""


def shortened(text: str, longest: int = LONGEST_SHOWN) -> str:
    """A text as messages show it: what is too long keeps its beginning and its end.

    Example:
        >>> shortened("a" * 50 + "b" * 50, longest=20)
        'aaaaaaaaaaa...bbbbbb'
    """
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]}...{text[-end:]}"


def path_advice(path: Path | str, *, otherwise: str = "Correct the path.") -> str:
    r"""A sentence about a path at which there is nothing: what may have been meant.

    ``otherwise`` is what is said where nothing there is like it.

    Example:
        >>> path_advice("data\\rows.jsonl")
        'Directories are separated by / here: write data/rows.jsonl.'
        >>> path_advice("/$DATA/rows.jsonl")
        'Variables such as $DATA are not replaced here: write the path itself.'
    """
    text = str(path)
    if "\\" in text and os.sep == "/":
        return f"Directories are separated by / here: write {text[text.rfind('/') + 1 :].replace(chr(92), '/')}."
    if address := re.match(r"https?:/", text):
        return f"Nothing is downloaded from {address[0]}/...: save it as a file, and write that one's path."
    if "$" in text:
        name = text[text.index("$") :].partition("/")[0]
        return f"Variables such as {name} are not replaced here: write the path itself."
    path = Path(path).expanduser()
    above = next((parent for parent in path.parents if parent.is_dir()), None)
    if above is None:
        return otherwise
    missing = path.relative_to(above).parts[0]  # the first name on the way that is not there
    is_last = above / missing == path
    near = _names_near(above, missing)
    problem = "" if is_last else f"There is no directory {above / missing}."
    if not near:
        return problem or otherwise
    rest = path.relative_to(above / missing)
    return f"{problem}{' ' if problem else ''}Did you mean {' or '.join(str(above / name / rest) for name in near)}?"


_MOST_NAMES = 5000
"""Names of a directory that are compared: a folder may hold a million pictures."""


def _names_near(directory: Path, name: str) -> list[str]:
    """The names in a directory that are most like one that is not in it."""
    try:
        with os.scandir(directory) as found:
            there = [item.name for item, _ in zip(found, range(_MOST_NAMES), strict=False)]
    except OSError:
        return []
    there = sorted(item for item in there if item[0] != ".")
    same = [item for item in there if item.casefold() == name.casefold()]
    if same:
        return same
    # an ending that two names share makes them no more alike: nope.png is not one.png
    stem, ending = os.path.splitext(name)
    alike = {os.path.splitext(item)[0]: item for item in there if os.path.splitext(item)[1] == ending}
    near = difflib.get_close_matches(stem, alike, n=2, cutoff=0.75)
    others = [item for item in there if item not in alike.values()]
    return [*(alike[found] for found in near), *difflib.get_close_matches(name, others, n=2, cutoff=0.75)][:2]


def printable(text: str) -> str:
    r"""A text with control characters and half characters written out: a terminal would obey the first, and cannot show
    the others.

    Example:
        >>> printable("\x1b[31mred\n\ud800")
        '\\x1b[31mred\n\\ud800'
    """
    return "".join(sign if sign.isprintable() or sign in "\n\t" else repr(sign)[1:-1] for sign in text)


def what_is(value: object) -> str:
    """What something is, as messages call it.

    Example:
        >>> what_is(3), what_is(None), what_is(dict)
        ('an int', 'None', 'the class dict')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    package = type(value).__module__.split(".")[0]
    name = name if package in ("builtins", "cwdpo", "__main__") else f"{package}.{name}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
