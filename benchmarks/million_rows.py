"""A million rows on this machine: ``python -m benchmarks.million_rows --out DIR [--rows N]``.

Writes N rows (a JSON lines file, with 5,000 pictures that the rows share), once, and runs commands on them, each in a
process of its own: ``cwdpo check``, and ``cwdpo train`` of one step by the tiny model of the demo, in stage 1 and in
stage 2 with a live reference. With ``--parquet SIDE`` the rows are in a parquet file, each with a picture of SIDE by
SIDE random pixels inside. Prints the CPU seconds and the largest memory of each command.
"""

import argparse
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

import cwdpo

PICTURES = 5_000
PICTURES_INSIDE = 1_000
PARTS = ("check", "stage1", "stage2")

_WORDS = (
    *("the", "a", "of", "in", "on", "and", "with", "under", "beside", "behind", "is", "are", "stands", "lies", "holds"),
    *("man", "woman", "child", "dog", "street", "table", "window", "bottle", "tree", "car", "light", "wall", "river"),
    *("red", "green", "small", "large", "old", "bright", "wooden", "empty", "three", "several", "left", "right"),
)


class Cost(NamedTuple):
    """What a command took."""

    command: str
    cpu_seconds: float
    peak_bytes: int
    code: int


def record(number: int, rng: random.Random) -> dict[str, Any]:
    """A row with texts of usual length: a question of 10 words, answers of about 40."""

    def text(words: int) -> str:
        return " ".join(rng.choices(_WORDS, k=words)).capitalize() + "."

    return {
        "id": str(number),
        "images": [f"pictures/{rng.randrange(PICTURES):04d}.png"],
        "prompt": text(10),
        "chosen": text(rng.randint(25, 55)),
        "rejected": text(rng.randint(25, 55)),
    }


def write_rows(out: Path, rows: int) -> Path:
    """The file of so many rows, and its pictures, unless they are there."""
    path = out / f"rows-{rows}.jsonl"
    if path.exists():
        return path
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for number in range(PICTURES):
        colour = tuple(rng.randrange(256) for _ in range(3))
        Image.new("RGB", (64, 48), colour).save(out / "pictures" / f"{number:04d}.png")
    written = path.with_suffix(".partial")
    with written.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record(number, rng)) + "\n" for number in range(rows))
    return written.rename(path)


def write_parquet(out: Path, rows: int, side: int) -> Path:
    """Rows with a picture of ``side`` x ``side`` random pixels inside each, one of :data:`PICTURES_INSIDE`, unless they
    are there. Row groups have 100 rows, as ``datasets`` writes them where there are images."""
    path = out / f"rows-{rows}-{side}.parquet"
    if path.exists():
        return path
    rng = random.Random(1)
    pictures = []
    for _ in range(PICTURES_INSIDE):
        file = io.BytesIO()
        Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side)).save(file, format="PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})

    def batch(start: int) -> pa.RecordBatch:
        numbers = range(start, min(start + 100, rows))
        return pa.RecordBatch.from_pylist([record(n, rng) | {"images": [rng.choice(pictures)]} for n in numbers])

    first = batch(0)
    written = path.with_suffix(".partial")
    with pq.ParquetWriter(written, first.schema, use_dictionary=False) as writer:
        writer.write_batch(first)
        for start in range(100, rows, 100):
            writer.write_batch(batch(start))
    return written.rename(path)


def one_step(data: Path, directory: Path, stage: str) -> list[str]:
    """The command that trains one step on the rows."""
    model = Path(cwdpo.__file__).parent / "demo" / "base"
    settings = {"stage1": {"objective": "plain"}, "stage2": {"reference": "live", "cooling": {"floor": -2.0}}}
    recipe = {
        "model": {"name_or_path": str(model)},
        "data": {"train": str(data)},
        stage: settings[stage],
        "probes": None,
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True},
        "output_dir": str(directory / f"run-{stage}"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return ["train", str(path)]


def measure(name: str, words: Sequence[str]) -> Cost:
    """Run a command of cwdpo, and see what it took."""
    sys.stdout.flush()
    child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "cwdpo", *words])
    _, status, used = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(name, used.ru_utime + used.ru_stime, used.ru_maxrss * unit, os.waitstatus_to_exitcode(status))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the rows, run the commands, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million_rows", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the rows are written and kept")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parquet", type=int, metavar="SIDE", help="rows with a picture of this side inside")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.parquet is None:
        data = write_rows(options.out, options.rows)
    else:
        data = write_parquet(options.out, options.rows, options.parquet)
    costs = []
    with tempfile.TemporaryDirectory() as directory:
        for part in options.only:
            words = ["check", str(data)] if part == "check" else one_step(data, Path(directory), part)
            costs.append(measure(f"{part}, {data.name}", words))
    print("| command | CPU seconds | peak memory, MB |\n|---|--:|--:|")
    for cost in costs:
        failed = "" if cost.code == 0 else f" (exit code {cost.code})"
        print(f"| {cost.command}{failed} | {cost.cpu_seconds:.1f} | {cost.peak_bytes / 1e6:,.0f} |")


if __name__ == "__main__":
    main()
