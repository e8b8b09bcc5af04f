"""What was measured, as text: one line a contestant, each beside the baseline. No torch."""

from collections.abc import Sequence
from statistics import median, quantiles
from typing import TYPE_CHECKING

from cwdpo.bench.flop_model import METHODS, step_flops
from cwdpo.bench.sizes import SETTINGS, SIZES

if TYPE_CHECKING:
    from cwdpo.bench.run import Result

_PAIR = ((48, 48),)
"""The pair that closed-form figures are for."""


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


def measured_table(result: "Result") -> str:
    """Markdown. Ratios are to the baseline; those of time are medians over rounds, with the quartiles."""
    base = result.measurements[result.baseline]
    lines = [
        f'{_title(result)}; ratios to "{result.baseline}"',
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
        cells += _times(one.seconds, base.seconds)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_notes(result), *_targets(result)])


def _targets(result: "Result") -> list[str]:
    from cwdpo.bench.run import BEST, FEATURES

    if not result.targets:
        return []
    lines = ["", "| target | at most | measured | |", "|---|--:|--:|---|"]
    for target in result.targets:
        what = f"{target.quantity}, {FEATURES if target.features else BEST}"
        lines.append(f"| {what} | {target.limit:.2f} | {target.ratio:.3f} | {'pass' if target.met else 'miss'} |")
    return lines


def _title(result: "Result") -> str:
    options = result.options
    what = "LoRA on the language model" if options.lora else "full fine-tuning"
    checkpointing = ", activation checkpointing" if options.checkpointing else ""
    where = f"{result.hardware}, {result.threads} threads" if options.device == "cpu" else result.hardware
    return f"{options.setting}, model `{options.size}`, {what}{checkpointing}; {where}, {options.dtype}"


def _times(seconds: Sequence[float], base: Sequence[float]) -> list[str]:
    if not seconds:
        return ["-", "-"]
    middle, low, high = spread([own / other for own, other in zip(seconds, base, strict=True)])
    return [f"{median(seconds):.3f}", f"{middle:.3f} ({low:.3f}-{high:.3f})"]


def _notes(result: "Result") -> list[str]:
    from cwdpo.bench.run import BEST

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


def closed_form_table() -> str:
    """Markdown: TFLOP of TRL's step on one pair with answers of 48 tokens, of the published sizes, and ratios to it."""
    lines = []
    for lora, checkpointing in ((False, False), (True, False), (False, True), (True, True)):
        title = ("LoRA" if lora else "full") + (", activation checkpointing" if checkpointing else "")
        methods = {name: m for name, m in METHODS.items() if lora or m.features == "computed"}
        names = [f"{name} (TFLOP)" if name == "TRL" else name for name in methods]
        lines += [f"**{title}**", "", f"| | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
        for size in ("3b", "7b", "72b"):
            for setting in SETTINGS:
                lines.append(_closed_form_line(size, setting, list(methods), lora=lora, checkpointing=checkpointing))
        lines.append("")
    return "\n".join(lines).rstrip()


def _closed_form_line(size: str, setting: str, methods: list[str], *, lora: bool, checkpointing: bool) -> str:
    shape = SETTINGS[setting]
    flops = [
        step_flops(
            SIZES[size],
            METHODS[name],
            _PAIR,
            prompt=shape.prompt,
            image_tokens=shape.image_tokens,
            lora=lora,
            checkpointing=checkpointing,
        )
        for name in methods
    ]
    cells = [f"{flops[0] / 1e12:.1f}", *(f"{value / flops[0]:.3f}" for value in flops[1:])]
    return f"| {size.upper()}, {shape.image_tokens} image tokens | {' | '.join(cells)} |"
