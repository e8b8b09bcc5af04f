"""Line charts as SVG without one style attribute: colours are classes of the page, so that a strict CSP allows them,
both colour schemes fit, and the text keeps its size on a phone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from cwdpo.report.series import Point, Segment, Series, smoothed, thinned

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 330, 14, 162
_MOST_POINTS = 240
NUM_COLOURS, NUM_DASHES = 6, 4


@dataclass(frozen=True)
class Line:
    """One run's curve in a chart, with the band between two of its other curves where there is one."""

    name: str
    rank: int
    """Position of the run in the legend; it decides colour and dashes."""

    series: Series
    band: tuple[Series, Series] | None = None


@dataclass(frozen=True)
class Mark:
    """A step at which a stage begins; rank is None where every run begins it there."""

    x: float
    label: str
    rank: int | None


def style_classes(rank: int | None) -> str:
    """The page's classes for the run at this position: 24 pairs of colour and dashes before one comes again."""
    if rank is None:
        return "all"
    return f"c{rank % NUM_COLOURS} d{(rank + rank // NUM_COLOURS) % NUM_DASHES}"


def value_range(lines: Sequence[Line], fixed: tuple[float, float] | None = None) -> tuple[float, float] | None:
    """Lowest and highest y to draw; None where there is no finite reading.

    All readings fit, unless a few spikes would flatten the rest: where they stretch the picture to more than three
    times the inner 98 % of every curve, it shows those alone.
    """
    curves = [sorted(s.values) for line in lines for s in (line.series, *(line.band or ())) if s.values]
    if not curves:
        return None
    low, high = min(c[0] for c in curves), max(c[-1] for c in curves)
    if fixed and fixed[0] <= low and high <= fixed[1]:
        return fixed
    inner = min(c[len(c) // 100] for c in curves), max(c[-1 - len(c) // 100] for c in curves)
    if high - low > 3 * (inner[1] - inner[0]) > 0:
        low, high = inner
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return low - pad, high + pad


def num_outside(lines: Sequence[Line], span: tuple[float, float]) -> int:
    """How many raw readings lie above or below the picture (they are drawn at its edge)."""
    return sum(not span[0] <= y <= span[1] for line in lines for y in line.series.values)


def ticks(low: float, high: float, *, about: int = 4, whole: bool = False) -> list[float]:
    """Round numbers within [low, high].

    Example:
        >>> ticks(0.0, 1.0), ticks(0, 120, whole=True)
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 25.0, 50.0, 75.0, 100.0])
    """
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    sizes = [size * unit for size in (1, 2, 2.5, 5, 10) if not whole or (size * unit).is_integer()] or [1.0]
    step = min(sizes, key=lambda size: abs(size - rough))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """Short text of a tick: ``0.25``, ``-3``, ``2.5e-06``.

    Example:
        >>> tick_label(0.30000000000000004), tick_label(-0.0), tick_label(120000.0)
        ('0.3', '0', '1.2e5')
    """
    text = f"{value or 0.0:.6g}" if 1e-3 <= abs(value) < 1e5 or not value else f"{value:.3e}"
    if "e" not in text:
        return text
    digits, power = text.split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"


class _Frame:
    """From data to the picture's units; what lies outside is put on the edge."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = x, y

    def left(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + min(max(share, 0.0), 1.0) * (_RIGHT - _LEFT)

    def top(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _BOTTOM - min(max(share, 0.0), 1.0) * (_BOTTOM - _TOP)

    def path(self, points: Sequence[Point]) -> str:
        """Path data; a gap lifts the pen. A reading alone between gaps becomes a dot (the line caps are round)."""
        parts, pen = [], False
        for i, (x, y) in enumerate(points):
            if y is not None:
                parts.append(f"{'L' if pen else 'M'}{self.left(x):.1f} {self.top(y):.1f}")
                if not pen and (i + 1 == len(points) or points[i + 1][1] is None):
                    parts.append("h0")
            pen = y is not None
        return "".join(parts)


def chart(
    lines: Sequence[Line], marks: Sequence[Mark], *, x: tuple[float, float], y: tuple[float, float], label: str
) -> Markup:
    """One chart of several runs.

    Args:
        lines: drawn in this order; the last lies on top.
        marks: where stages begin.
        x: first and last step of the axis.
        y: lowest and highest value of the axis (see :func:`value_range`).
        label: what a screen reader says in place of the picture.
    """
    frame = _Frame(x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5), y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *_axes(frame),
        *_stage_marks(frame, marks),
    ]
    for line in lines:
        parts += _curve(frame, line)
    return Markup("".join([*parts, "</svg>"]))


def sample(rank: int) -> Markup:
    """A short piece of a run's line, for the legend."""
    path = f'<path class="line {style_classes(rank)}" d="M2 6H34"/>'
    return Markup(f'<svg class="sample" viewBox="0 0 36 12" aria-hidden="true">{path}</svg>')


def _axes(frame: _Frame) -> Iterator[str]:
    for value in ticks(*frame.y):
        top = f"{frame.top(value):.1f}"
        yield f'<path class="{"zero" if value == 0 else "grid"}" d="M{_LEFT} {top}H{_RIGHT}"/>'
        yield f'<text class="ytick" x="{_LEFT - 5}" y="{top}" dy="4">{tick_label(value)}</text>'
    for value in ticks(*frame.x, about=5, whole=True):
        left = f"{frame.left(value):.1f}"
        yield f'<path class="grid" d="M{left} {_BOTTOM}v4"/>'
        yield f'<text class="xtick" x="{left}" y="{_BOTTOM + 17}">{tick_label(value)}</text>'


def _stage_marks(frame: _Frame, marks: Sequence[Mark]) -> Iterator[str]:
    named: set[str] = set()
    for mark in marks:
        left = frame.left(mark.x)
        yield f'<path class="mark {style_classes(mark.rank)}" d="M{left:.1f} {_TOP}V{_BOTTOM}"/>'
        if mark.label in named:  # runs that begin a stage at different steps: one name is enough, and two may collide
            continue
        named.add(mark.label)
        side = "start" if left < (_LEFT + _RIGHT) / 2 else "end"
        yield f'<text class="mark {side}" x="{left:.1f}" y="{_TOP - 4}">{escape(mark.label)}</text>'


def _curve(frame: _Frame, line: Line) -> Iterator[str]:
    style = style_classes(line.rank)
    if line.band:
        for low, high in zip(line.band[0].segments, line.band[1].segments, strict=False):
            yield f'<path class="band {style}" d="{_band(frame, low, high)}"/>'
    for segment in line.series.segments:
        smooth = thinned(smoothed(segment.points), most=_MOST_POINTS)
        raw = thinned(segment.points, most=_MOST_POINTS)
        if smooth != raw:
            yield f'<path class="raw {style}" d="{frame.path(raw)}"/>'
        dot = "dot " if len(segment.values) == 1 else ""
        yield f'<path class="{dot}line {style}" d="{frame.path(smooth)}"><title>{escape(line.name)}</title></path>'


def _band(frame: _Frame, low: Segment, high: Segment) -> str:
    """Closed outline: along the upper curve and back along the lower one; gaps are bridged."""
    upper = [p for p in thinned(smoothed(high.points), most=_MOST_POINTS) if p[1] is not None]
    lower = [p for p in thinned(smoothed(low.points), most=_MOST_POINTS) if p[1] is not None]
    there = frame.path([*upper, *reversed(lower)])
    return f"{there}Z" if upper and lower else ""
