"""``cwdpo bench``: what a step costs, beside TRL."""

import json
import sys
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from cwdpo.cli.quiet import quiet_libraries
from cwdpo.errors import UserError


class _Setting(str, Enum):
    II = "ii"
    I256 = "i256"
    I1024 = "i1024"


class _FineTune(str, Enum):
    FULL = "full"
    LORA = "lora"


class _Engine(str, Enum):
    TREE = "tree"
    PLAIN = "plain"


class _Device(str, Enum):
    CPU = "cpu"
    CUDA = "cuda"


class _Size(str, Enum):
    SMALL = "small"
    QWEN_3B = "3b"


def bench(
    setting: Annotated[_Setting, typer.Option(help="64, 256 or 1,024 image tokens.")] = _Setting.I256,
    finetune: Annotated[_FineTune, typer.Option(help="Every weight, or adapters.")] = _FineTune.LORA,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Activation checkpointing for all.")] = False,
    engine: Annotated[_Engine | None, typer.Option(help="Only this engine, beside TRL.")] = None,
    device: Annotated[_Device, typer.Option(help="cuda measures in bfloat16.")] = _Device.CPU,
    size: Annotated[
        _Size | None, typer.Option(help="Qwen2.5-VL-3B, or its proportions in small. Default: small on a CPU.")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Timed steps, each contestant in turn.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Write every number here too.")] = None,
) -> None:
    """Measure step time, FLOPs and memory beside TRL, on the same random model, rows and threads.

    Nothing is downloaded. In the source tree, `python -m benchmarks.closed_form` computes the FLOPs of larger models.
    """
    if out is not None and out.exists():
        raise UserError(f"{out} is there already, and nothing is overwritten. Give another name.")
    quiet_libraries()
    import torch

    if device == _Device.CUDA and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Leave it out to measure on the CPU.")
    from cwdpo.bench.run import Options, measured_table, run_bench

    torch.set_num_threads(threads)
    on_gpu = device == _Device.CUDA
    options = Options(
        setting=setting.value,
        size=(size or (_Size.QWEN_3B if on_gpu else _Size.SMALL)).value,
        lora=finetune == _FineTune.LORA,
        checkpointing=checkpointing,
        engine=None if engine is None else engine.value,
        device=device.value,
        dtype="bfloat16" if on_gpu else "float32",
        steps=steps,
    )
    result = run_bench(options, say=_say)
    print(measured_table(result))
    if out is not None:
        content: dict[str, Any] = asdict(result)
        content["targets"] = [asdict(target) | {"met": target.met} for target in result.targets]
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
