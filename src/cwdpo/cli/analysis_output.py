"""What ``cwdpo analyse`` shows and writes: a table, JSON and pictures."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from cwdpo.cli.analysis import Analysis, Pushed
from cwdpo.cooling import cooling_weight
from cwdpo.dynamics import loser_push, push_down_repeatedly
from cwdpo.evaluation.influence import Influence, correlation, slope
from cwdpo.records.files import write_json, write_text
from cwdpo.report.figure import Curve, Dots, Figure, draw_figure

_SHOWN = 20
_PUSHES = 60
_PUSH_SIZE = 0.5


def show_analysis(analysis: Analysis, console: Console) -> None:
    """Print the largest influences and how well they were predicted."""
    first = [one for one in analysis.report.influences if one.eta == analysis.settings.etas[0]]
    table = Table(title=f"Change of lbar after one SGD step, {analysis.settings.loss}, nats per token")
    for name in ("trained", "observed", "answer"):
        table.add_column(name, overflow="fold")
    for name in ("predicted", "measured", "argmax", "kernel"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in sorted(first, key=lambda one: -abs(one.measured))[:_SHOWN]:
        numbers = [f"{value:+.2e}" for value in (one.predicted, one.measured, one.measured_top)]
        table.add_row(*_names(analysis, one), one.role, *numbers, _nearness(analysis, one))
    console.print(table)
    notes = ["argmax: measured change of the tokens that were likeliest before the step."]
    if analysis.kernel is not None:
        notes.append("kernel: cosine of the empirical NTK between the two rows' chosen answers.")
    if len(first) > _SHOWN:
        notes.append(f"The {_SHOWN} largest of {len(first)}; --out DIR writes all.")
    for note in [*notes, *_sentences(analysis)]:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


def write_analysis(analysis: Analysis, out: Path) -> list[Path]:
    """Write ``analysis.json`` and the pictures; returns what was written."""
    path = out / "analysis.json"
    write_json(path, to_json(analysis))
    written = [path]
    for name, figure in figures(analysis):
        written.append(out / name)
        write_text(out / name, draw_figure(figure))
    return written


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The whole analysis in plain values."""
    settings = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(analysis.settings).items()}
    kernel = analysis.kernel
    return {
        "settings": settings,
        "floor": analysis.floor,
        "num_parameters": analysis.num_parameters,
        "rows": analysis.names,
        "by_eta": [_summary(analysis, eta) for eta in analysis.settings.etas],
        "check": {"worst_relative_error": worst_check(analysis), "checks": [asdict(c) for c in analysis.report.checks]},
        "kernel": None if kernel is None else {"mean": kernel.mean.tolist(), "error": kernel.error.tolist()},
        "influences": [asdict(one) for one in analysis.report.influences],
    }


def worst_check(analysis: Analysis) -> float:
    """Largest difference between A K G and plain autograd, over the most that the number could be."""
    return max(abs(c.decomposed - c.autograd) / c.scale if c.scale else 0.0 for c in analysis.report.checks)


def figures(analysis: Analysis) -> Iterator[tuple[str, Figure]]:
    """File names and pictures, those that this analysis has the numbers for."""
    yield "predicted_measured.svg", _predicted_measured(analysis)
    if len(analysis.settings.etas) > 1:
        yield "learning_rate.svg", _learning_rate(analysis)
    if analysis.rejected_length is not None and analysis.floor is not None:
        yield (
            "loser_push.svg",
            vulnerable_region(
                analysis.floor, analysis.settings.temperature, analysis.settings.beta, analysis.rejected_length
            ),
        )
        if analysis.pushed is not None:
            yield "squeezing.svg", _squeezing(analysis.pushed, analysis.floor, analysis.settings.temperature)


def vulnerable_region(floor: float, temperature: float, beta: float, length: int) -> Figure:
    """Squared push on the loser over its lbar, with and without cooling.

    Args:
        floor: l_floor, nats per token.
        temperature: tau.
        beta: of DPO.
        length: tokens of the loser.
    """
    lowest = min(-8.0, 2 * floor)
    lbar = torch.linspace(lowest, -0.001, 160, dtype=torch.float64)
    one, weight = torch.ones_like(lbar), cooling_weight(lbar, floor, temperature=temperature)
    start = torch.maximum(lbar, torch.tensor(floor, dtype=torch.float64))  # a loser that fell from the floor

    def curve(name: str, w: torch.Tensor, begin: torch.Tensor, colour: int, dashed: bool) -> Curve:
        push = loser_push(lbar, w, start=begin, length=length, beta=beta)
        return Curve(name, list(zip(lbar.tolist(), push.tolist(), strict=True)), colour, dashed)

    return Figure(
        title="Squared push on each token of the rejected answer",
        x_label=f"lbar(y_l|x), nats per token   (floor {floor:.2f}, tau {temperature:g}, beta {beta:g}, L {length})",
        y_label="||G_l||^2",
        x=(lowest, 0.0),
        y=(0.0, beta**2 / 2 * 1.15),
        curves=[
            curve("DPO, first step", one, lbar, 1, False),
            curve("CW-DPO, first step", weight, lbar, 0, False),
            curve("DPO, fallen from the floor", one, start, 1, True),
            curve("CW-DPO, fallen from the floor", weight, start, 0, True),
        ],
        shade=((lowest, max(lowest, floor - 3 * temperature)), "w_c < 0.05"),
    )


def _predicted_measured(analysis: Analysis) -> Figure:
    first = [one for one in analysis.report.influences if one.eta == analysis.settings.etas[0]]
    most = max([abs(v) for one in first for v in (one.predicted, one.measured)] + [1e-12]) * 1.08
    same = [(one.predicted, one.measured) for one in first if one.trained == one.observed]
    other = [(one.predicted, one.measured) for one in first if one.trained != one.observed]
    return Figure(
        title=f"One SGD step, {analysis.settings.loss}, eta {analysis.settings.etas[0]:g}: "
        f"correlation {correlation(first):.4f}",
        x_label="predicted: -eta A K G, nats per token",
        y_label="measured change of lbar",
        x=(-most, most),
        y=(-most, most),
        curves=[Curve("predicted = measured", [(-most, -most), (most, most)], 3, True)],
        dots=[Dots("other rows", other, 0), Dots("the row trained on", same, 1)],
    )


def _learning_rate(analysis: Analysis) -> Figure:
    found = [(math.log10(eta), _of_eta(analysis, eta)) for eta in sorted(set(analysis.settings.etas))]
    curves = [
        Curve("correlation", [(x, correlation(of)) for x, of in found], 0),
        Curve("measured / predicted (slope)", [(x, slope(of)) for x, of in found], 1, True),
    ]
    values = [y for curve in curves for _, y in curve.points if math.isfinite(y)]
    span = found[-1][0] - found[0][0] or 1.0
    return Figure(
        title=f"How far the first order carries, {analysis.settings.loss}",
        x_label="eta of the SGD step",
        y_label="",
        x=(found[0][0] - 0.03 * span, found[-1][0] + 0.03 * span),
        y=(min([0.0, *values]) - 0.02, max([1.0, *values]) * 1.05),
        curves=curves,
        x_ticks=[(x, f"{10**x:.3g}") for x, _ in found],
    )


def _squeezing(pushed: Pushed, floor: float, temperature: float) -> Figure:
    """The model's own softmax at one place, while a rejected token is pushed down there."""
    others = pushed.logprobs.clone()
    others[pushed.target] = -math.inf
    top, second = others.topk(2).indices.tolist()
    hot = push_down_repeatedly(pushed.logprobs, pushed.target, step=_PUSH_SIZE, num_steps=_PUSHES)
    cooled = push_down_repeatedly(
        pushed.logprobs, pushed.target, step=_PUSH_SIZE, num_steps=_PUSHES, floor=floor, temperature=temperature
    )
    curves = [
        Curve(f"{name}{kind}", list(enumerate(path[:, token].exp().tolist())), colour, dashed)
        for token, name, colour in ((top, "the likeliest token", 0), (second, "the second", 1))
        for path, kind, dashed in ((hot, "", False), (cooled, ", cooled", True))
    ]
    return Figure(
        title=f"Pushing down a rejected token of probability {pushed.logprobs[pushed.target].exp():.1e}",
        x_label=f"steps of {_PUSH_SIZE} on its logits (row {pushed.row}, token {pushed.token + 1} of the answer)",
        y_label="probability",
        x=(0, _PUSHES),
        y=(0.0, 1.02),
        curves=curves,
    )


def _of_eta(analysis: Analysis, eta: float) -> list[Influence]:
    return [one for one in analysis.report.influences if one.eta == eta]


def _summary(analysis: Analysis, eta: float) -> dict[str, Any]:
    found = _of_eta(analysis, eta)
    others = [one for one in found if one.trained != one.observed]
    return {
        "eta": eta,
        "n": len(found),
        "correlation": correlation(found),
        "correlation_other_rows": correlation(others),
        "slope": slope(found),
        "largest_change": max(abs(one.measured) for one in found),
        "means": {"same_row": _means(found, same=True), "other_rows": _means(found, same=False)},
    }


def _means(influences: Sequence[Influence], *, same: bool) -> dict[str, dict[str, float]]:
    """Mean measured change of lbar and of the argmax by role, on the row trained on or on the others."""
    found: dict[str, dict[str, float]] = {}
    for role in dict.fromkeys(one.role for one in influences):
        of = [one for one in influences if one.role == role and (one.trained == one.observed) == same]
        if of:
            found[role] = {
                "lbar": sum(one.measured for one in of) / len(of),
                "argmax": sum(one.measured_top for one in of) / len(of),
            }
    return found


def _sentences(analysis: Analysis) -> Iterator[str]:
    for eta in analysis.settings.etas:
        of = _summary(analysis, eta)
        others = of["correlation_other_rows"]
        apart = f" ({others:.4f} without the rows trained on)" if math.isfinite(others) else ""
        yield (
            f"eta {eta:g}: correlation {of['correlation']:.4f} over {of['n']} answers{apart}, "
            f"slope {of['slope']:.3f}, largest change {of['largest_change']:.2g} nats/token"
        )
    for where, roles in _summary(analysis, analysis.settings.etas[0])["means"].items():
        words = [f"{role} {of['lbar']:+.1e} (argmax {of['argmax']:+.1e})" for role, of in roles.items()]
        if words:
            yield f"mean change, {where.replace('_', ' ')}: {', '.join(words)}"
    yield f"A K G and plain autograd differ by {worst_check(analysis):.1e} of the most it could be."


def _names(analysis: Analysis, one: Influence) -> tuple[str, str]:
    return analysis.names[one.trained], analysis.names[one.observed]


def _nearness(analysis: Analysis, one: Influence) -> str:
    return "" if analysis.kernel is None else f"{analysis.kernel.cosine[one.observed, one.trained].item():+.2f}"
