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
from cwdpo.records import check_place


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
    whole_run: Annotated[
        bool,
        typer.Option(
            "--whole-run", help="Whole runs, import to save, beside TRL's script; takes only the options below."
        ),
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=4, help="Rows of a whole run.")] = 40,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of a whole run.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Whole runs of each, in turn.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Write every number to this file too.")] = None,
) -> None:
    """Measure step time, FLOPs and memory beside TRL, on the same random model, rows and threads.

    Nothing is downloaded. In the source tree, `python -m benchmarks.closed_form` computes the FLOPs of larger models.
    """
    if out is not None:
        check_place(out, option="--json")
    quiet_libraries()
    say = partial(print, file=sys.stderr, flush=True)
    if whole_run:
        from cwdpo.bench.whole_run import WholeRunOptions, run_whole_runs, whole_run_table

        found = run_whole_runs(WholeRunOptions(rows=rows, epochs=epochs, rounds=rounds, threads=threads), say=say)
        print(whole_run_table(found))
        if out is not None:
            out.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
        return
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
    result = run_bench(options, say=say)
    print(measured_table(result))
    if out is not None:
        targets = [asdict(target) | {"met": target.met} for target in result.targets]
        out.write_text(json.dumps(asdict(result) | {"targets": targets}, indent=2) + "\n", encoding="utf-8")
