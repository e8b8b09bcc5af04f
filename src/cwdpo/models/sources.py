"""Tell local checkpoints from hub names, and library errors in one line."""

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers.utils import logging as transformers_logging

from cwdpo.errors import UserError


def local_directory(name_or_path: str | Path) -> Path | None:
    """The absolute directory that is meant, or None for a hub name.

    Absolute, because adapters write the path of their base model into their files.

    Raises:
        UserError: it reads like a path (or is a ``Path``, or begins with a directory that is here and is no hub model
            that was downloaded before), but there is no such directory.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    text = str(name_or_path)
    looks_local = isinstance(name_or_path, Path) or text.startswith(("/", ".", "~")) or text.count("/") != 1
    if path.exists():
        raise UserError(f"{text} is a file, but a checkpoint is a directory. Name the one with config.json.")
    if not looks_local and _begins_here(text):
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1)
        hint = f"Did you mean {path.parent / near[0]}?" if near else "Check the path."
        raise UserError(
            f"there is no directory {text}, though {path.parent} is one. {hint} If it is a hub model, download it "
            f"first: `hf download {text}`."
        )
    if looks_local and ("/" in text or isinstance(name_or_path, Path)):
        raise UserError(f"there is no directory {text}. Check the path, or give a hub name such as `owner/model`.")
    return None


def _begins_here(name: str) -> bool:
    """Whether ``m/llava`` is more likely a slip in a path than a hub name."""
    if not Path(name).parent.is_dir():
        return False
    try:
        return not isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # it could be no hub name
        return True


def one_line(error: BaseException) -> str:
    """The first line of a library's message that says something, for messages of our own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def reported_by_us() -> Iterator[None]:
    """Silence transformers' own warnings, where everything it would warn of becomes a message of ours."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def some(names: Iterable[str], *, shown: int = 3) -> str:
    """The first names in order, and how many more there are.

    Example:
        >>> some(["b", "a", "d", "c"])
        'a, b, c and 1 more'
    """
    ordered = sorted(names)
    text = ", ".join(ordered[:shown])
    return text if len(ordered) <= shown else f"{text} and {len(ordered) - shown} more"
