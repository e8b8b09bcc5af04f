"""What the models of a grid said of the same pictures, and what each lost of the start, picture by picture.

python -m examples.pretrained.answers runs/pretrained > docs/results/pretrained_answers.json
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from cwdpo.compare.grid import START, Cell, Grid, cells, read_grid, read_outcome
from cwdpo.compare.run import world_directory
from cwdpo.data.reading import read_rows
from cwdpo.errors import UserError
from examples.pretrained.people import ANSWERS, HERE

MEASURES = ("exact", "tone", "who")


def change(own: Sequence[float], start: Sequence[float]) -> dict[str, float]:
    """The mean of a difference over the same pictures, and its standard error, sd / sqrt(pictures)."""
    gaps = [mine - theirs for mine, theirs in zip(own, start, strict=True)]
    return {"mean": round(fmean(gaps), 5), "error": round(stdev(gaps) / math.sqrt(len(gaps)), 5)}


def compare_answers(grid: Grid, out: Path, *, shown: int = 6) -> dict[str, Any]:
    """What is kept of the answers of a grid's runs.

    Args:
        grid: what was run.
        out: the directory of the grid.
        shown: of how many pictures the answers are given; the first held-out ones of the first seed.

    Returns:
        ``names`` and the answers (``said``, a list for each run's name); and for each run the ``changes`` of the
        measures from the start's, over the pictures of all seeds that are done, and how many ``pictures`` these are.
    """
    done: dict[str, dict[int, Cell]] = {}
    for cell in cells(grid):
        if read_outcome(cell.directory(out)) is not None:
            done.setdefault(_name(cell), {})[cell.seed] = cell
    if grid.seeds[0] not in done.get(START, {}):
        raise UserError(
            f"{out} has no measured start of seed {grid.seeds[0]}. Run `cwdpo compare` with this --out first."
        )
    first = done[START][grid.seeds[0]]
    world = world_directory(out, first)
    said, runs = {}, {}
    for name, by_seed in done.items():
        if first.seed in by_seed:
            run = by_seed[first.seed].directory(out) / "run"
            file = (world if name == START else run) / ANSWERS
            said[name] = json.loads(file.read_text(encoding="utf-8"))[:shown]
        if name != START:
            changes = {measure: change(*_paired(measure, by_seed, done[START], out)) for measure in MEASURES}
            runs[name] = {"pictures": len(_paired(MEASURES[0], by_seed, done[START], out)[0]), "changes": changes}
    names = [row.chosen for row in read_rows(world / "eval.jsonl")][:shown]
    return {"names": names, "said": said, "runs": runs}


def _name(cell: Cell) -> str:
    return ", ".join(filter(None, (cell.method, cell.label)))


def _paired(measure: str, own: dict[int, Cell], start: dict[int, Cell], out: Path) -> tuple[list[float], list[float]]:
    """The values of a run and of the start at the same pictures, over all seeds of the run."""

    def values(by_seed: dict[int, Cell]) -> list[float]:
        found = (read_outcome(by_seed[seed].directory(out)) for seed in own)
        return [value for outcome in found if outcome for value in outcome.rows[measure]]

    return values(own), values(start)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="what `cwdpo compare` was given as --out")
    parser.add_argument("--grid", type=Path, default=HERE / "grid.yaml")
    args = parser.parse_args()
    try:
        found = compare_answers(read_grid(args.grid), args.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
