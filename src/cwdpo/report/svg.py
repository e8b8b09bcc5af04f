"""Line charts as SVG without one style attribute: colours are classes of the page, so that a strict CSP allows them,
both colour schemes fit, and the text keeps its size on a phone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from cwdpo.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, axes
from cwdpo.report.series import Segment, Series, smoothed, thinned

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
    frame = Frame(x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5), y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5))
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">',
        *axes(frame),
        *_stage_marks(frame, marks),
    ]
    for line in lines:
        parts += _curve(frame, line)
    return Markup("".join([*parts, "</svg>"]))


def sample(rank: int) -> Markup:
    """A short piece of a run's line, for the legend."""
    path = f'<path class="line {style_classes(rank)}" d="M2 6H34"/>'
    return Markup(f'<svg class="sample" viewBox="0 0 36 12" aria-hidden="true">{path}</svg>')


def _stage_marks(frame: Frame, marks: Sequence[Mark]) -> Iterator[str]:
    named: set[str] = set()
    for mark in marks:
        left = frame.left(mark.x)
        yield f'<path class="mark {style_classes(mark.rank)}" d="M{left:.1f} {TOP}V{BOTTOM}"/>'
        if mark.label in named:  # runs that begin a stage at different steps: one name is enough, and two may collide
            continue
        named.add(mark.label)
        side = "start" if left < (LEFT + RIGHT) / 2 else "end"
        yield f'<text class="mark {side}" x="{left:.1f}" y="{TOP - 4}">{escape(mark.label)}</text>'


def _curve(frame: Frame, line: Line) -> Iterator[str]:
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


def _band(frame: Frame, low: Segment, high: Segment) -> str:
    """Closed outline: along the upper curve and back along the lower one; gaps are bridged."""
    upper = [p for p in thinned(smoothed(high.points), most=_MOST_POINTS) if p[1] is not None]
    lower = [p for p in thinned(smoothed(low.points), most=_MOST_POINTS) if p[1] is not None]
    there = frame.path([*upper, *reversed(lower)])
    return f"{there}Z" if upper and lower else ""
