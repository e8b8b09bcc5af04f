"""How much main memory a process may still take; and sizes for people."""

import os
from pathlib import Path

import psutil


def free_memory() -> int:
    """Bytes of main memory that this process may still take: of the machine, or of its container if that is less."""
    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:  # no container, or one that does not say
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def processes_here() -> int:
    """Processes of this run on this machine, each of which keeps things of its own in memory."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def human_bytes(number: float) -> str:
    """A size for people.

    Example:
        >>> human_bytes(1_500_000), human_bytes(12)
        ('1.5 MB', '12 B')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
