"""Reliability diagrams: how often a model is right, at each confidence, when a stage begins and when it ends."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from cwdpo.report.axes import LEFT, RIGHT, TOP, WIDTH, Frame, axes
from cwdpo.report.lists import Reliability, first_and_last
from cwdpo.report.panels import stage_label
from cwdpo.report.runs import Run

_BOTTOM = TOP + RIGHT - LEFT  # a square
_LARGEST, _SMALLEST = 26.0, 2.0
"""Radius of a dot that has all tokens, and the least radius that can be seen."""


@dataclass(frozen=True)
class Diagram:
    """A run's diagram and its calibration error in words."""

    rank: int
    name: str
    svg: Markup
    words: str


def diagrams(runs: Sequence[Run]) -> list[Diagram]:
    """One diagram a run whose probes measured reliability: the last stage's first and last reading."""
    return [_diagram(rank, run) for rank, run in enumerate(runs) if run.reliability]


def radius(n: float, total: float) -> float:
    """Of a bin's dot: its area is the bin's share of the tokens.

    Example:
        >>> radius(25, 100)
        13.0
    """
    return max(_LARGEST * math.sqrt(n / total), _SMALLEST)


def _diagram(rank: int, run: Run) -> Diagram:
    readings = first_and_last(run.reliability)
    words = _words(readings)
    frame = Frame((0.0, 1.0), (0.0, 1.0), bottom=_BOTTOM)
    label = escape(f"Accuracy over confidence of {run.name}. {words}")
    svg = [f'<svg class="chart" viewBox="0 0 {WIDTH} {_BOTTOM + 28}" role="img" aria-label="{label}">']
    svg += [*axes(frame, whole=False), f'<path class="mark all" d="M{LEFT} {_BOTTOM}L{RIGHT} {TOP}"/>']
    for kind, reading in zip(("first", "last")[-len(readings) :], readings, strict=True):
        svg += _dots(reading, kind, frame)
    return Diagram(rank, run.name, Markup("".join([*svg, "</svg>"])), words)


def _dots(reading: Reliability, kind: str, frame: Frame) -> Iterator[str]:
    for one in reading.bins:
        place = f'cx="{frame.left(one.confidence):.1f}" cy="{frame.top(one.accuracy):.1f}"'
        text = f"Step {reading.step}: {one.n:.0f} tokens, confidence {one.confidence:.2f}, right {one.accuracy:.2f}"
        yield f'<circle class="{kind}" {place} r="{radius(one.n, reading.n):.1f}"><title>{text}</title></circle>'


def _words(readings: Sequence[Reliability]) -> str:
    at = [f"{reading.ece:.3f} at step {reading.step}" for reading in readings]
    stage = stage_label(readings[-1].stage).capitalize()
    return f"{stage}: ECE {', '.join(at)} ({readings[-1].n:.0f} tokens)."
