"""``cwdpo bench``: what a step costs, beside TRL."""

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import UserError


def bench(
    setting: Annotated[
        Literal["ii", "i256", "i1024"], typer.Option("--setting", help="64, 256 or 1,024 image tokens.")
    ] = "i256",
    finetune: Annotated[
        Literal["full", "lora"], typer.Option("--finetune", help="Every weight, or adapters.")
    ] = "lora",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Activation checkpointing for all.")] = False,
    engine: Annotated[
        Literal["tree", "plain"] | None, typer.Option("--engine", help="Only this engine, beside TRL.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="cuda measures in bfloat16.")] = "cpu",
    size: Annotated[
        Literal["small", "3b"] | None,
        typer.Option("--size", help="Qwen2.5-VL-3B, or a small model of its proportions.  [default: small on a CPU]"),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Timed steps of each contestant, in turn.")] = 5,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Of the CPU.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Write every number to this file too.")] = None,
) -> None:
    """Measure step time, FLOPs and memory beside TRL, on the same random model, rows and threads.

    Nothing is downloaded. In the source tree, `python -m benchmarks.closed_form` computes the FLOPs of larger models.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} exists already, and nothing is overwritten. Give another name.")
    quiet_libraries()
    import torch

    on_gpu = device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Leave it out to measure on the CPU.")
    from cwdpo.bench.run import Options, measured_table, run_bench

    torch.set_num_threads(threads)
    options = Options(
        setting=setting,
        size=size or ("3b" if on_gpu else "small"),
        lora=finetune == "lora",
        checkpointing=checkpointing,
        engine=engine,
        device=device,
        dtype="bfloat16" if on_gpu else "float32",
        steps=steps,
    )
    result = run_bench(options, say=partial(print, file=sys.stderr, flush=True))
    print(measured_table(result))
    if out is not None:
        targets = [asdict(target) | {"met": target.met} for target in result.targets]
        out.write_text(json.dumps(asdict(result) | {"targets": targets}, indent=2) + "\n", encoding="utf-8")
