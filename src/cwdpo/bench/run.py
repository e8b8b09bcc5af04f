"""Measure all contestants on one batch: FLOPs and memory once, time in alternation."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Literal

import torch
import transformers

from cwdpo import __version__
from cwdpo.bench.contestants import (
    SETTINGS,
    SIZES,
    Contestant,
    Quantity,
    Target,
    Task,
    build_model,
    build_processor,
    cw_dpo,
    make_rows,
    require_trl,
    targets,
    trl_dpo,
)
from cwdpo.bench.counting import clock, count_flops, peak_memory, saved_activations

STRICT = "TRL, answer tokens only"
SHIPPED = "TRL"
BEST = "tree, cached reference"
FEATURES = "tree, cached reference and features"
FLEX = "tree by flex_attention, cached reference"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    setting: str = "i256"
    size: str = "small"
    lora: bool = True
    checkpointing: bool = False
    engine: Literal["tree", "plain"] | None = None
    """Only this engine of ours; None measures both."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    steps: int = 5
    seed: int = 0


@dataclass(kw_only=True)
class Measurement:
    """One contestant. FLOPs and bytes are of one step on the whole batch."""

    loss: float
    flops: int
    saved_bytes: int
    """Kept by autograd between forward and backward pass, weights apart."""

    peak_bytes: int
    """Held at the step's peak beyond what was held before it."""

    seconds: list[float] = field(default_factory=list)
    """Of every timed step; CPU time on a CPU."""


@dataclass(kw_only=True)
class Result:
    """Everything that was measured, and on what."""

    options: Options
    hardware: str
    versions: dict[str, str]
    threads: int
    baseline: str
    """The contestant that ratios are to."""

    measurements: dict[str, Measurement] = field(default_factory=dict)
    reference_pass: Measurement | None = None
    """The pass that fills the reference cache, over the same batch; it has no backward pass and no loss."""

    targets: list[Target] = field(default_factory=list)


def run_bench(options: Options, *, say: Callable[[str], None]) -> Result:
    """Build the model and the contestants, measure each, then time them in turn; ``say`` gets a line before each."""
    require_trl()
    size, setting = SIZES[options.size], SETTINGS[options.setting]
    processor = build_processor(size.vision)
    with tempfile.TemporaryDirectory() as directory:
        model = build_model(size, processor, device=options.device, dtype=options.dtype, seed=options.seed)
        device = model.device
        task = Task(
            model=model.to("cpu"),  # each contestant's copy goes where it runs
            processor=processor,
            rows=make_rows(setting, size.vision, seed=options.seed),
            lora_rank=size.lora_rank if options.lora else None,
            checkpointing=options.checkpointing,
            directory=Path(directory),
            on_gpu=device.type == "cuda",
        )
        contestants = _contestants(options)
        result = Result(
            options=options,
            hardware=_hardware(device),
            versions={
                "cwdpo": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "trl": version("trl"),
            },
            threads=torch.get_num_threads(),
            baseline=STRICT if STRICT in contestants else SHIPPED,
        )
        ready: dict[str, Contestant] = {}
        for name, make in contestants.items():
            say(f"measuring {name}")
            ready[name] = make(task)
            with ready[name].at_work():
                result.measurements[name] = _measure(ready[name])
                if name == BEST:
                    once = ready[name].reference_pass
                    flops, peak = count_flops(once), peak_memory(once, device)
                    result.reference_pass = Measurement(loss=0.0, flops=flops, saved_bytes=0, peak_bytes=peak)
        _time_in_turn(ready, result, say)
    base = result.measurements[result.baseline]
    for target in targets(options.setting, lora=options.lora, checkpointing=options.checkpointing):
        one = result.measurements.get(FEATURES if target.features else BEST)
        if one is not None and (one.seconds or target.quantity != "time"):
            result.targets.append(replace(target, ratio=_ratio(target.quantity, one, base)))
    return result


def measured_table(result: Result) -> str:
    """Markdown. Ratios are to the baseline; those of time are medians over rounds, with the quartiles."""
    base = result.measurements[result.baseline]
    options = result.options
    what = "LoRA on the language model" if options.lora else "full fine-tuning"
    checkpointing = ", activation checkpointing" if options.checkpointing else ""
    where = f"{result.hardware}, {result.threads} threads" if options.device == "cpu" else result.hardware
    lines = [
        f"{options.setting}, model `{options.size}`, {what}{checkpointing}; {where}, {options.dtype}"
        f'; ratios to "{result.baseline}"',
        "",
        "| | loss | GFLOP | ratio | saved MB | ratio | peak MB | ratio | time s | ratio (quartiles) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in result.measurements.items():
        cells = [f"{one.loss:.7f}"]
        for value, other, unit in (
            (one.flops, base.flops, 1e9),
            (one.saved_bytes, base.saved_bytes, 1e6),
            (one.peak_bytes, base.peak_bytes, 1e6),
        ):
            cells += [f"{value / unit:.1f}", f"{value / other:.3f}"]
        if one.seconds:
            middle, low, high = spread([own / other for own, other in zip(one.seconds, base.seconds, strict=True)])
            cells += [f"{median(one.seconds):.3f}", f"{middle:.3f} ({low:.3f}-{high:.3f})"]
        else:
            cells += ["-", "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *_notes(result)]
    if result.targets:
        lines += ["", "| target | at most | measured | |", "|---|--:|--:|---|"]
    for target in result.targets:
        quantity = f"{target.quantity}, {FEATURES if target.features else BEST}"
        lines.append(f"| {quantity} | {target.limit:.2f} | {target.ratio:.3f} | {'pass' if target.met else 'miss'} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        (3.0, 2.0, 4.0)
        >>> spread([7.0])
        (7.0, 7.0, 7.0)
    """
    if len(values) == 1:
        return (values[0],) * 3
    first, _, third = quantiles(values, n=4, method="inclusive")
    return median(values), first, third


def _contestants(options: Options) -> dict[str, Callable[[Task], Contestant]]:
    found: dict[str, Callable[[Task], Contestant]] = {SHIPPED: lambda task: trl_dpo(task, compact_head=False)}
    if options.device != "cuda":  # there TRL scores answer tokens only by itself
        found[STRICT] = lambda task: trl_dpo(task, compact_head=True)
    if options.engine != "tree":
        found["plain"] = lambda task: cw_dpo(task, engine="plain", reference="live")
        found["plain, cached reference"] = lambda task: cw_dpo(task, engine="plain", reference="cached")
    if options.engine != "plain":
        found["tree"] = lambda task: cw_dpo(task, engine="tree", reference="live")
        found[BEST] = lambda task: cw_dpo(task, engine="tree", reference="cached")
        if options.lora:  # otherwise the tower trains
            found[FEATURES] = lambda task: cw_dpo(task, engine="tree", reference="cached", features=True)
        if options.device == "cuda":  # on a CPU the kernel has no backward pass
            found[FLEX] = lambda task: cw_dpo(task, engine="tree", reference="cached", attention="flex")
    return found


def _measure(contestant: Contestant) -> Measurement:
    loss = contestant.step()  # engines check themselves in their first step
    flops = count_flops(contestant.step)
    with saved_activations(contestant.weights) as saved:
        graph = contestant.loss()
        saved_bytes = saved()
    del graph
    peak = peak_memory(contestant.step, contestant.device)
    return Measurement(loss=loss, flops=flops, saved_bytes=saved_bytes, peak_bytes=peak)


def _time_in_turn(ready: dict[str, Contestant], result: Result, say: Callable[[str], None]) -> None:
    for number in range(result.options.steps):
        say(f"timing step {number + 1} of {result.options.steps}")
        for name, contestant in ready.items():
            with contestant.at_work():
                result.measurements[name].seconds.append(_seconds(contestant.step, contestant.device))
                if name == BEST and result.reference_pass is not None:
                    result.reference_pass.seconds.append(_seconds(contestant.reference_pass, contestant.device))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    start = clock(device)
    step()
    return clock(device) - start


def _ratio(quantity: Quantity, one: Measurement, base: Measurement) -> float:
    if quantity == "FLOPs":
        return one.flops / base.flops
    if quantity == "saved activations":
        return one.saved_bytes / base.saved_bytes
    return median(own / other for own, other in zip(one.seconds, base.seconds, strict=True))


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _notes(result: Result) -> list[str]:
    base = result.measurements[result.baseline]
    losses = [one.loss for one in result.measurements.values()]
    notes = [f"Losses differ by at most {max(losses) - min(losses):.2g}."]
    once = result.reference_pass
    if once is None:
        return notes
    best = result.measurements[BEST]
    for epochs in (1, 3):
        line = f"With the reference pass paid over {epochs} epoch{'s' * (epochs > 1)}: FLOPs "
        line += f"{(best.flops + once.flops / epochs) / base.flops:.3f}"
        if once.seconds:
            whole = [step + extra / epochs for step, extra in zip(best.seconds, once.seconds, strict=True)]
            line += f", time {spread([own / other for own, other in zip(whole, base.seconds, strict=True)])[0]:.3f}"
        notes.append(f"{line}.")
    return notes
