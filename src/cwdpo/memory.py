"""How much main memory a process may still take, passes that fit into a GPU's, and sizes for people."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import psutil

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Found = TypeVar("Found")


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


class FittingPasses:
    """Passes over as many items at one time as a GPU has room for: how many that are is learned from those that failed.

    Main memory has no such limit to learn from: a process that takes too much of it is ended.
    """

    def __init__(self, name: str) -> None:
        """Items are called by a ``name`` in the log, in the plural."""
        self._name = name
        self._most: int | None = None

    def run(self, work: Callable[[Sequence[Item]], Found], items: Sequence[Item]) -> list[Found]:
        """What ``work`` gives for all items, in their order: for all at one time, or for each of some portions.

        A portion that ran out of memory is done again, in halves, with the random numbers that it had drawn. It is
        torch's ``OutOfMemoryError`` if not even one item has room.
        """
        import torch  # here, as who only wants sizes for people is spared its import

        card = torch.cuda if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        found: list[Found] = []
        done = 0
        while done < len(items):
            portion = items[done : done + (self._most or len(items))]
            drawn = torch.get_rng_state(), card and card.get_rng_state()
            try:
                found.append(work(portion))
                done += len(portion)
                continue
            except torch.OutOfMemoryError:
                if len(portion) == 1:
                    raise
            # behind the handler: while there is a traceback, what the pass had in memory is held
            torch.set_rng_state(drawn[0])
            if card is not None and drawn[1] is not None:
                card.set_rng_state(drawn[1])
                card.empty_cache()
            self._most = len(portion) // 2
            logger.warning("%d %s at one time have no room: %d from now on", len(portion), self._name, self._most)
        return found


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
