"""The tree's split attention beside its mask: ``python -m benchmarks.split_attention [--setting i1024] [--steps 5]``.

The model and the batch are those of ``cwdpo bench``: LoRA, the reference cached and image features kept, which leaves
the language model alone. Both sides take steps in turn, on one thread.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cwdpo.bench.contestants import SETTINGS, SIZES, Contestant, Task, build_model, build_processor, cw_dpo, make_rows
from cwdpo.bench.counting import count_flops, peak_memory, saved_activations
from cwdpo.engine.tree import TreeAttention

SIDES: tuple[TreeAttention, TreeAttention] = ("mask", "split")


@dataclass
class Side:
    """What one attention costs. Bytes are of one step."""

    gradients: dict[str, Tensor]
    flops: int
    saved_bytes: int
    peak_bytes: int
    seconds: list[float] = field(default_factory=list)
    """CPU time of each step."""


def compare(setting: str, *, steps: int, checkpointing: bool = False) -> dict[TreeAttention, Side]:
    """Measure both sides on one batch."""
    size = SIZES["small"]
    processor = build_processor(size.vision)
    rows = make_rows(SETTINGS[setting], size.vision, seed=0)
    with tempfile.TemporaryDirectory() as directory:
        task = Task(
            model=build_model(size, processor),
            processor=processor,
            rows=rows,
            lora_rank=size.lora_rank,
            checkpointing=checkpointing,
            directory=Path(directory),
        )
        ready = {side: cw_dpo(task, engine="tree", reference="cached", features=True, attention=side) for side in SIDES}
        found = {side: _measure(contestant) for side, contestant in ready.items()}
        for _ in range(steps):
            for side, contestant in ready.items():
                began = time.process_time()
                contestant.step()
                found[side].seconds.append(time.process_time() - began)
    return found


def gradient_gap(found: dict[TreeAttention, Side]) -> float:
    """The largest difference of a gradient's entry, relative to the largest of its tensor."""
    mask, split = (found[side].gradients for side in SIDES)
    return max(((split[name] - mask[name]).abs().max() / mask[name].abs().max()).item() for name in mask)


def _measure(contestant: Contestant) -> Side:
    contestant.loss().backward()  # type: ignore[no-untyped-call]
    weights = contestant.trainer.model.named_parameters()
    gradients = {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}
    contestant.trainer.model.zero_grad(set_to_none=True)
    with saved_activations(contestant.weights) as saved:
        loss = contestant.loss()
        saved_bytes = saved()
    del loss
    peak_bytes = peak_memory(contestant.step, contestant.device)
    return Side(gradients, count_flops(contestant.step), saved_bytes, peak_bytes)


def main(arguments: Sequence[str]) -> None:
    """Print a table; times are medians, and their ratios medians over the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="i1024")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = compare(asked.setting, steps=asked.steps, checkpointing=asked.checkpointing)
    base = found["mask"]
    print("| attention | GFLOP | saved MB | peak MB | CPU s a step | ratio |\n|---|--:|--:|--:|--:|--:|")
    for name, side in found.items():
        ratio = median(own / other for own, other in zip(side.seconds, base.seconds, strict=True))
        print(
            f"| {name} | {side.flops / 1e9:.1f} | {side.saved_bytes / 1e6:.1f} | {side.peak_bytes / 1e6:.1f} | "
            f"{median(side.seconds):.3f} | {ratio:.3f} |"
        )
    print(f"\nGradients differ by at most {gradient_gap(found):.1e} of the largest in their tensor.")


if __name__ == "__main__":
    main(sys.argv[1:])
