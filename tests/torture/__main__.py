"""The long form, by ``make torture``: prints the tables of docs/reliability.md, and ends with 1 if anything failed.

``--share N`` takes every N-th of it.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tiny import build

from torture.inputs import SORTS, Outcome, fuzz, lines_of
from torture.runs import KINDS, Kind, moments, survive

INPUTS = {"rows": 7000, "recipes": 5000, "images": 4000, "run directories": 1000, "server answers": 3000}


def main() -> int:
    """Kills, full disks, second starts and random input, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    share = given.share
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    began, failures = time.monotonic(), list[str]()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        model = build("llava", Path(folder) / "model")
        kinds = []
        for number, name in enumerate(KINDS):
            (Path(folder) / str(number)).mkdir()
            kinds.append(Kind.make(name, Path(folder) / str(number), model))
        rng = random.Random(given.seed)
        tries = {
            "kills at random moments": random_kills(kinds, 100 // share, rng),
            "kills before a file is made, renamed or removed": file_kills(kinds, 120 // share, rng),
            "full disks": full_disks(kinds, max(20 // share, len(kinds)), rng),
            "two starts, and `--resume` beside a live run": second_starts(kinds, max(20 // share, 1)),
        }
        print("| runs | tried | failed |\n|---|---|---|")
        for what, each in tries.items():
            found = survive(each)
            failures += found
            print(f"| {what} | {len(each)} | {len(found)} |", flush=True)
            print(*found, sep="\n", end="\n" * bool(found), file=sys.stderr, flush=True)
        print("\n| random input | tried | taken | tracebacks |\n|---|---|---|---|")
        for name in SORTS:
            outcome: Outcome = fuzz(name, Path(folder) / "inputs" / name, INPUTS[name] // share, first=given.seed)
            found = [f"{name}: {defect} ({count} times)" for defect, count in outcome.defects.items()]
            failures += found
            print(*lines_of({name: outcome}), flush=True)
            print(*found, sep="\n", end="\n" * bool(found), file=sys.stderr, flush=True)
    print(f"\n{time.monotonic() - began:.0f} seconds, seed {given.seed}")
    return int(bool(failures))


def random_kills(kinds: list[Kind], count: int, rng: random.Random) -> list[Callable[[], str]]:
    """Moments in time between the start and the end of an uninterrupted run, in turn for each kind."""
    tries = []
    for i in range(count):
        kind, share = kinds[i % len(kinds)], rng.random()
        tries.append(partial(kind.survives_kill_after, share * kind.seconds, f"kill{i}"))
    return tries


def file_kills(kinds: list[Kind], count: int, rng: random.Random) -> list[Callable[[], str]]:
    """Moments before a change of a file."""
    return [
        partial(kind.survives_kill_at, at, f"file{at}")
        for kind in kinds
        for at in moments(kind, count // len(kinds), rng)
    ]


def full_disks(kinds: list[Kind], count: int, rng: random.Random) -> list[Callable[[], str]]:
    """From a change of a file on."""
    return [
        partial(kind.survives_full_disk, at, f"disk{at}")
        for kind in kinds
        for at in moments(kind, count // len(kinds), rng)
    ]


def second_starts(kinds: list[Kind], count: int) -> list[Callable[[], str]]:
    """In turn for each kind."""
    return [partial(kinds[i % len(kinds)].refuses_second_start, f"two{i}") for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
