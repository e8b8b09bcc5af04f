"""Work in a forked process that is killed, or finds the disk full, at a chosen moment.

A fork costs milliseconds where a new interpreter would import torch for seconds. Python's audit events say when a
process is about to make, rename or remove a file; so a process can be killed before each of these, one after the other.
"""

import errno
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cwdpo.cli.app import explain

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_SMALL = 4096
"""Bytes of a file on a disk that is full: writers in C++ and Rust raise no audit events, and meet this limit."""

PATIENCE = 300.0
"""Seconds after which a child is taken to hang; a run takes about ten."""

Moment = Callable[[int], None]
"""Called with the number of each change in the directory, from 1 on, before it is made."""


def fork(work: Callable[[], object], *, watched: Path, moment: Moment = lambda number: None) -> int:
    """Start work in a process of its own; its exit code is 0, 2 for an error of the user, 1 for a defect. What it says
    goes to ``OUT.log`` beside the directory that is ``watched``."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(log_of(watched), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.register(signal.SIGUSR1, file=2)
        _take_own_locks()
        _watch(watched, moment)
        work()
        code = 0
    except BaseException as error:
        message = explain(error)
        code = 1 if message is None else 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        text = message or traceback.format_exc()
        os.write(2, f"\n{text}\n".encode())
    finally:
        os._exit(code)


def _take_own_locks() -> None:
    """Those of progress bars are shared by all forks: a child that is killed while it holds one would stop the next."""
    bars, lock = [tqdm], threading.RLock()
    for bar in bars:
        bars += bar.__subclasses__()
        bar.set_lock(lock)


def join(pid: int) -> int:
    """Wait for a process: its exit code, or the signal that ended it as a negative number. One that hangs is a
    ``TimeoutError``; where it hung is in its log."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGUSR1)
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a child did not end within {PATIENCE:g} seconds")


def log_of(watched: Path) -> Path:
    return watched.with_name(f"{watched.name}.log")


def last_line(watched: Path) -> str:
    """What a child said last."""
    lines = log_of(watched).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def killed_at(number: int) -> Moment:
    """Killed before this change."""

    def moment(now: int) -> None:
        if now == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return moment


def full_from(number: int) -> Moment:
    """From this change on the disk is full."""

    def moment(now: int) -> None:
        if now == number:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL, hard))
        if now >= number:
            raise OSError(errno.ENOSPC, "No space left on device")

    return moment


def counting(into: Path) -> Moment:
    """Leaves the number of changes in a file."""
    handle = os.open(into, os.O_CREAT | os.O_WRONLY, 0o600)

    def moment(now: int) -> None:
        os.pwrite(handle, f"{now:09d}".encode(), 0)

    return moment


def _watch(directory: Path, moment: Moment) -> None:
    inside, number, busy = str(directory) + os.sep, 0, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal number, busy
        if busy or not _changes(event, args) or not str(args[0]).startswith(inside):
            return
        number, busy = number + 1, True
        try:
            # what a full disk does not refuse is not asked about
            if event in ("open", "os.mkdir") or moment.__qualname__.split(".")[0] != "full_from":
                moment(number)
        finally:
            busy = False

    sys.addaudithook(hook)


def _changes(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(args[0], str) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in _CHANGES
