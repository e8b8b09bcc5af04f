"""A step beside itself with one part computed another way: ``python -m benchmarks.two_ways attention`` (the tree's
split attention beside its mask) or ``lora`` (PEFT's layers beside ours).

The model and the batch are those of ``cwdpo bench``: LoRA, the reference cached and image features kept, which leaves
the language model alone. Both sides take steps in turn, on one thread.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from cwdpo.bench.contestants import SETTINGS, SIZES, Contestant, Task, build_model, build_processor, cw_dpo, make_rows
from cwdpo.bench.counting import count_flops, peak_memory, saved_activations

_STEP = partial(cw_dpo, engine="tree", reference="cached", features=True)

PARTS: dict[str, dict[str, Callable[[Task], Contestant]]] = {
    "attention": {"mask": partial(_STEP, attention="mask"), "split": partial(_STEP, attention="split")},
    "lora": {
        "PEFT's layers": partial(_STEP, attention="split", peft_layers=True),
        "ours": partial(_STEP, attention="split"),
    },
}
"""By part, the way that it is compared with, and ours."""


@dataclass
class Side:
    """What one way costs. Bytes are of one step."""

    gradients: dict[str, Tensor]
    flops: int
    saved_bytes: int
    peak_bytes: int
    seconds: list[float] = field(default_factory=list)
    """CPU time of each step."""


def compare(
    part: str, setting: str, *, steps: int, checkpointing: bool = False, kind: torch.dtype = torch.float32
) -> dict[str, Side]:
    """Measure both sides of one of :data:`PARTS` on one batch; weights are of a ``kind``, and 16 bits are mixed."""
    size = SIZES["small"]
    processor = build_processor(size.vision)
    rows = make_rows(SETTINGS[setting], size.vision, seed=0)
    with tempfile.TemporaryDirectory() as directory:
        task = Task(
            model=build_model(size, processor).to(kind),
            processor=processor,
            rows=rows,
            lora_rank=size.lora_rank,
            checkpointing=checkpointing,
            directory=Path(directory),
        )
        ready = {side: build(task) for side, build in PARTS[part].items()}
        found = {side: _measure(contestant) for side, contestant in ready.items()}
        for _ in range(steps):
            for side, contestant in ready.items():
                began = time.process_time()
                contestant.step()
                found[side].seconds.append(time.process_time() - began)
    return found


def gradient_gap(found: Mapping[str, Side]) -> float:
    """The largest difference of a gradient's entry, relative to the largest of its tensor."""
    other, ours = (side.gradients for side in found.values())
    return max(((ours[name] - other[name]).abs().max() / other[name].abs().max()).item() for name in other)


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
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="i1024")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="weights in bfloat16, mixed precision")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = compare(
        asked.part,
        asked.setting,
        steps=asked.steps,
        checkpointing=asked.checkpointing,
        kind=torch.bfloat16 if asked.bf16 else torch.float32,
    )
    base = next(iter(found.values()))
    print(f"| {asked.part} | GFLOP | saved MB | peak MB | CPU s a step | ratio |\n|---|--:|--:|--:|--:|--:|")
    for name, side in found.items():
        ratio = median(own / other for own, other in zip(side.seconds, base.seconds, strict=True))
        print(
            f"| {name} | {side.flops / 1e9:.1f} | {side.saved_bytes / 1e6:.1f} | {side.peak_bytes / 1e6:.1f} | "
            f"{median(side.seconds):.3f} | {ratio:.3f} |"
        )
    print(f"\nGradients differ by at most {gradient_gap(found):.1e} of the largest in their tensor.")


if __name__ == "__main__":
    main(sys.argv[1:])
