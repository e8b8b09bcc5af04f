"""Which errors are the user's to mend, and what to tell them."""

import errno
from collections.abc import Iterator

from cwdpo.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")  # how safetensors, in Rust, says it
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException) -> str | None:
    """One message for an error that the user can mend; None for a defect of ours, which needs its traceback.

    Example:
        >>> explain(UserError("rows.jsonl:3: no answer. Add one."))
        'rows.jsonl:3: no answer. Add one.'
        >>> explain(KeyError("x")) is None
        True
    """
    for cause in _chain(error):
        if isinstance(cause, UserError):
            return _from_worker(str(cause))
    for cause in _chain(error):
        if _is_full_disk(cause):
            return (
                f"no space left on the disk{_about(cause)}. What was saved before is whole. "
                "Free some space and run the command again, with --resume if it was training."
            )
        if isinstance(cause, OSError) and cause.errno in _DENIED:
            return f"no permission{_about(cause)} ({cause.strerror}). Give another path, or mend its permissions."
    return None


def _from_worker(message: str) -> str:
    """The message alone, of an error that a data loader's worker process wrapped in its traceback.

    Example:
        >>> _from_worker("Caught DataError in DataLoader worker process 0.\\nTraceback ...\\n  a.DataError: x:1: no")
        'x:1: no'
    """
    if not message.startswith("Caught "):
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


def _is_full_disk(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or any(word in str(error) for word in _FULL_WORDS)


def _about(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f" at {name}" if name else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, newest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
