"""What packing several prompts into one row would save beside what is built: ``python -m benchmarks.packing``.

Counts tokens and the decoder's forward FLOPs of 4,096 rows of drawn lengths, each row one prompt with all its answers.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.closed_form import PUBLISHED, decoder_cost
from cwdpo.bench.contestants import ModelSize
from cwdpo.engine.layout import Cost, parts_within
from cwdpo.trainers.steps import LengthBuckets

Passes: TypeAlias = Sequence[Sequence[int]]
"""Row lengths of each forward pass."""

_NUMBER, _BUDGET, _BLOCK = 4096, 8192, 128


@dataclass(frozen=True)
class Plan:
    """One way to put rows into forward passes."""

    name: str
    tokens: int
    """Padding included."""

    pairs: float
    """Query-key pairs that attention computes."""

    def flops(self, size: ModelSize) -> float:
        """Of the decoder's forward pass."""
        one_row = decoder_cost(size, [self.tokens], rank=None).forward
        linear = one_row - 4 * self.tokens**2 * size.depth * size.width
        return linear + 4 * self.pairs * size.depth * size.width


def mixed_lengths(number: int = _NUMBER) -> list[int]:
    """Short questions, longer ones, and pictures of several sizes: log-uniform from 40 to 2,000 tokens."""
    generator = random.Random(0)
    return [int(40 * 50 ** generator.random()) for _ in range(number)]


def picture_lengths(number: int = _NUMBER) -> list[int]:
    """The bench's `i1024`: one picture of one size, a short prompt, two answers of 32 to 64 tokens."""
    generator = random.Random(0)
    return [1024 + 32 + generator.randint(32, 64) + generator.randint(32, 64) - 2 for _ in range(number)]


def plans(lengths: Sequence[int]) -> list[Plan]:
    """Random steps, those under a token budget, length buckets, and packing, by both kinds of attention."""
    order = random.Random(1).sample(range(len(lengths)), len(lengths))
    buckets = list(LengthBuckets(lengths, step_rows=16, seed=0))
    found = [_padded("random steps of 16", _cut(order, 16), lengths)]
    for rows in (64, 256):
        steps = _cut(order, rows)
        parts = [[step[i] for i in part] for step in steps for part in _parts(step, lengths)]
        found.append(_padded(f"random steps of {rows}, max_tokens_per_batch {_BUDGET}", parts, lengths))
    found.append(_padded("length_buckets, steps of 16", _cut(buckets, 16), lengths))
    found.append(_padded("the same by block masks", _cut(buckets, 16), lengths, blocks=True))
    number = _packs(lengths)
    causal = sum(_causal_blocks(length) for length in lengths)
    found.append(Plan(f"packed into {_BUDGET}, dense mask", number * _BUDGET, number * _BUDGET**2))
    found.append(Plan(f"packed into {_BUDGET}, block masks", number * _BUDGET, causal))
    return found


def table(lengths: Sequence[int]) -> str:
    """Markdown: padded tokens over tokens, and FLOPs over those of length buckets."""
    rows = plans(lengths)
    base = next(plan for plan in rows if plan.name.startswith("length_buckets"))
    lines = ["| | tokens with padding | FLOPs, 3B | FLOPs, 7B |", "|---|--:|--:|--:|"]
    for plan in rows:
        cells = [f"{plan.tokens / sum(lengths):.3f}"]
        cells += [f"{plan.flops(PUBLISHED[size]) / base.flops(PUBLISHED[size]):.3f}" for size in ("3b", "7b")]
        lines.append(f"| {plan.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parts(step: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    return parts_within([Cost(1, lengths[row]) for row in step], _BUDGET)


def _padded(name: str, passes: Passes, lengths: Sequence[int], *, blocks: bool = False) -> Plan:
    longest = [max(lengths[row] for row in rows) for rows in passes]
    tokens = sum(len(rows) * length for rows, length in zip(passes, longest, strict=True))
    if blocks:  # padding sees nothing but itself
        pairs = float(sum(_causal_blocks(length) for length in lengths))
    else:
        pairs = float(sum(len(rows) * length**2 for rows, length in zip(passes, longest, strict=True)))
    return Plan(name, tokens, pairs)


def _causal_blocks(length: int) -> int:
    side = -(-length // _BLOCK)
    return side * (side + 1) // 2 * _BLOCK**2


def _packs(lengths: Sequence[int]) -> int:
    """How many rows of the budget's length the prompts fill, the longest first, each where it first fits."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((i for i, left in enumerate(room) if left >= length), None)
        if place is None:
            room.append(_BUDGET - length)
        else:
            room[place] -= length
    return len(room)


def _cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


if __name__ == "__main__":
    for title, drawn in (("40 to 2,000 tokens", mixed_lengths()), ("one picture of 1,024 tokens", picture_lengths())):
        sys.stdout.write(f"{title}\n\n{table(drawn)}\n\n")
