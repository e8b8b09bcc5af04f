"""How much main memory a process may still take."""

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
