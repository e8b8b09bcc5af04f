"""Curves and the SVG they are drawn as: charts of the report, and pictures that are files of their own.

A chart in the page has no style attribute: its colours are classes of the page, so that a strict CSP allows them, both
colour schemes fit, and the text keeps its size on a phone. A file has no page, so it brings its own style, for light
and dark.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from statistics import fmean

from markupsafe import Markup, escape

Point = tuple[float, float | None]
"""x and y of one reading; y is None where the logged value was not a finite number."""

_ABSURD = 1e30
"""Larger magnitudes are treated like infinity: no axis could show them beside anything else."""


def finite(value: object) -> float | None:
    """The value as a float, or None where it is not a finite number.

    Example:
        >>> finite(3), finite("3"), finite(float("nan")), finite(True)
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) < _ABSURD else None


@dataclass(frozen=True)
class Segment:
    """The readings of one metric within one stage of a run."""

    stage: str
    points: tuple[Point, ...]

    @property
    def values(self) -> list[float]:
        """The finite readings, oldest first."""
        return [y for _, y in self.points if y is not None]

    @property
    def _tenth(self) -> int:
        return max(1, len(self.values) // 10)

    @property
    def start(self) -> float | None:
        """Mean of the first tenth of the readings (at least one)."""
        return fmean(self.values[: self._tenth]) if self.values else None

    @property
    def end(self) -> float | None:
        """Mean of the last tenth of the readings (at least one)."""
        return fmean(self.values[-self._tenth :]) if self.values else None

    @property
    def moved(self) -> float:
        """End less start, or 0 where the readings scatter so much that this may be chance.

        The scatter is taken from second differences, which a steady trend leaves at 0; a change counts from twice its
        standard error, as if readings were independent.
        """
        if self.start is None or self.end is None:
            return 0.0
        change = self.end - self.start
        return change if abs(change) >= 2 * math.sqrt(2) * self.end_error else 0.0

    @property
    def end_error(self) -> float:
        """Standard error of :attr:`end`, by the scatter of the readings."""
        values = self.values
        bends = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
        variance = math.fsum(bend * bend for bend in bends) / (6 * len(bends)) if bends else 0.0
        return math.sqrt(variance / self._tenth)


@dataclass(frozen=True)
class Series:
    """One metric of one run: a segment a stage, in the order of training."""

    segments: tuple[Segment, ...]

    @property
    def values(self) -> list[float]:
        return [y for segment in self.segments for y in segment.values]

    @property
    def end(self) -> float | None:
        """Where the last stage that has finite readings ended; None where there are none."""
        return next((s.end for s in reversed(self.segments) if s.values), None)

    @property
    def num_broken(self) -> int:
        return sum(y is None for segment in self.segments for _, y in segment.points)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """Centred moving average over about a twentieth of the readings; a gap stays a gap.

    Fewer than 12 readings are returned as they are. The window shrinks at both ends, so nothing lags.
    """
    if len(points) < 12:
        return list(points)
    half = max(1, len(points) // 40)
    sums = [0.0, *accumulate(y or 0.0 for _, y in points)]
    counts = [0, *accumulate(y is not None for _, y in points)]
    out: list[Point] = []
    for i, (x, y) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        low, high = i - reach, i + reach + 1
        out.append((x, None if y is None else (sums[high] - sums[low]) / (counts[high] - counts[low])))
    return out


def thinned(points: Sequence[Point], *, most: int) -> list[Point]:
    """At most about ``most`` points that keep the highest and lowest reading, and any gap, of every stretch."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for i in range(0, len(points), size):
        known = [(x, y) for x, y in points[i : i + size] if y is not None]
        if known:
            kept += sorted({min(known, key=itemgetter(1)), max(known, key=itemgetter(1))})
        kept += [point for point in points[i : i + size] if point[1] is None][:1]
    return kept


WIDTH, HEIGHT = 340, 206
LEFT, RIGHT, TOP, BOTTOM = 44.0, 330.0, 14.0, 162.0


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


@dataclass(frozen=True)
class Frame:
    """From data between the ends of both axes to the picture's units; what lies outside is put on the edge."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEFT
    right: float = RIGHT
    top: float = TOP
    bottom: float = BOTTOM

    def across(self, x: float) -> float:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return self.left + min(max(share, 0.0), 1.0) * (self.right - self.left)

    def down(self, y: float) -> float:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - self.top)

    def path(self, points: Sequence[Point], *, dots: bool = True) -> str:
        """Path data; a gap lifts the pen. With ``dots`` a reading between gaps becomes a dot, where caps are round."""
        parts, pen = [], False
        for i, (x, y) in enumerate(points):
            if y is not None:
                parts.append(f"{'L' if pen else 'M'}{self.across(x):.1f} {self.down(y):.1f}")
                if dots and not pen and (i + 1 == len(points) or points[i + 1][1] is None):
                    parts.append("h0")
            pen = y is not None
        return "".join(parts)


def svg_of(
    parts: Iterable[str], *, label: str, height: float = HEIGHT, above: float = 0.0, read: Frame | None = None
) -> Markup:
    """A chart of the page from its elements; a screen reader reads the label instead of the picture.

    ``above`` is room over the frame's own, in units of the picture.
    ``read`` is the frame of curves whose values the page shows under the pointer, and with the arrow keys.
    """
    reads = ""
    if read is not None:
        numbers = (*read.x, *read.y, read.left, read.right, read.top, read.bottom)
        reads = f' tabindex="0" data-frame="{" ".join(f"{one:.8g}" for one in numbers)}"'
    box = f"0 {0 - above:g} {WIDTH} {height + above:g}"
    start = f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}"{reads}>'
    return Markup("".join([start, *parts, "</svg>"]))


def axes(
    frame: Frame, x_name: str, *, whole: bool = True, about: int = 5, x_ticks: Sequence[tuple[float, str]] = ()
) -> Iterator[str]:
    """Grid, name of the x axis, and ticks: without ``x_ticks``, ``about`` so many round ones, whole if ``whole``."""
    for value in ticks(*frame.y):
        top = f"{frame.down(value):.1f}"
        yield f'<path class="{"zero" if value == 0 else "grid"}" d="M{frame.left:g} {top}H{frame.right:g}"/>'
        yield f'<text class="ytick" x="{frame.left - 5:g}" y="{top}" dy="4">{tick_label(value)}</text>'
    for place, text in x_ticks or [(x, tick_label(x)) for x in ticks(*frame.x, about=about, whole=whole)]:
        left = f"{frame.across(place):.1f}"
        yield f'<path class="grid" d="M{left} {frame.bottom:g}v4"/>'
        yield f'<text class="xtick" x="{left}" y="{frame.bottom + 18:g}">{escape(text)}</text>'
    middle = (frame.left + frame.right) / 2
    yield f'<text class="xname" x="{middle:g}" y="{frame.bottom + 36:g}">{escape(x_name)}</text>'


_UNIT = 16.0
"""Room for the unit over the y axis, above the names of stages."""

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
    """The page's classes for the run at this position: 24 pairs of colour and dashes before one repeats."""
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
    lines: Sequence[Line],
    marks: Sequence[Mark],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    label: str,
    unit: str = "",
) -> Markup:
    """One chart of several runs between the ends of both axes; the last line lies on top, ``unit`` is that of y."""
    frame = Frame(x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5), y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5))
    curves = [part for line in lines for part in _curve(frame, line)]
    if sum(line.band is not None for line in lines) > 1:  # several fills on each other are mud: outlines, one is filled
        curves = [part.replace('class="band ', 'class="band edge ') for part in curves]
    name = [f'<text class="yname" x="2" y="{8 - _UNIT:g}">{escape(unit)}</text>'] if unit else []
    parts = [*axes(frame, "training step"), *name, *_stage_marks(frame, marks), *curves]
    return svg_of(parts, label=label, read=frame, above=_UNIT if unit else 0.0)


def sample(rank: int) -> Markup:
    """A short piece of a run's line, for the legend."""
    path = f'<path class="line {style_classes(rank)}" d="M2 6H34"/>'
    return Markup(f'<svg class="sample" viewBox="0 0 36 12" aria-hidden="true">{path}</svg>')


def phase_bar(seconds: Mapping[str, float]) -> Markup:
    """Where a run's time went: one bar of a piece a phase, each of the width of its share, stretched by the page."""
    whole, left, parts = sum(seconds.values()), 0.0, []
    for rank, (name, value) in enumerate(seconds.items()):
        width = _BAR * value / whole
        title = escape(f"{name}: {value / whole:.0%}")
        parts.append(
            f'<rect class="p{rank}" x="{left:.1f}" y="0" width="{width:.1f}" height="18"><title>{title}</title></rect>'
        )
        left += width
    label = escape(
        "Where the time went: " + ", ".join(f"{name} {value / whole:.0%}" for name, value in seconds.items())
    )
    box = f'viewBox="0 0 {_BAR} 18" preserveAspectRatio="none"'
    return Markup(f'<svg class="phases" {box} role="img" aria-label="{label}">{"".join(parts)}</svg>')


_BAR = 1000
"""Units that the bar of phases is wide."""


def _stage_marks(frame: Frame, marks: Sequence[Mark]) -> Iterator[str]:
    named: set[str] = set()
    for mark in marks:
        left = frame.across(mark.x)
        yield f'<path class="mark {style_classes(mark.rank)}" d="M{left:.1f} {frame.top:g}V{frame.bottom:g}"/>'
        if mark.label in named:  # runs that begin a stage at different steps: one name is enough, and two may collide
            continue
        named.add(mark.label)
        side = "start" if left < (frame.left + frame.right) / 2 else "end"
        yield f'<text class="mark {side}" x="{left:.1f}" y="{frame.top - 4:g}">{escape(mark.label)}</text>'


def _curve(frame: Frame, line: Line) -> Iterator[str]:
    style = style_classes(line.rank)
    if line.band:
        for low, high in zip(line.band[0].segments, line.band[1].segments, strict=False):
            # a closed outline, along the upper curve and back along the lower one; gaps are bridged
            upper, lower = (
                [p for p in thinned(smoothed(edge.points), most=_MOST_POINTS) if p[1] is not None]
                for edge in (high, low)
            )
            outline = f"{frame.path([*upper, *reversed(lower)])}Z" if upper and lower else ""
            yield f'<path class="band {style}" d="{outline}"/>'
    for segment in line.series.segments:
        smooth = thinned(smoothed(segment.points), most=_MOST_POINTS)
        raw = thinned(segment.points, most=_MOST_POINTS)
        if smooth != raw:
            yield f'<path class="raw {style}" d="{frame.path(raw)}"/>'
        dot = "dot " if len(segment.values) == 1 else ""
        yield f'<path class="{dot}line {style}" d="{frame.path(smooth)}"><title>{escape(line.name)}</title></path>'


_WIDTH, _HEIGHT = 560, 330
_LEGEND_TOP, _LEGEND_ROW = 302, 18

_COLOURS = (("#0b62a8", "#6db3f2"), ("#b3470f", "#f2a06d"), ("#3d7a2a", "#8fce79"), ("#7a3f98", "#c79be0"))
"""Of each curve, in light and in dark."""

XY = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line through points, in order."""

    name: str
    points: Sequence[XY]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Dots:
    """Points by themselves."""

    name: str
    points: Sequence[XY]
    colour: int = 0


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is drawn between the ends of both axes; everything outside is left out."""

    title: str
    x_label: str
    y_label: str
    x: XY
    y: XY
    curves: Sequence[Curve] = ()
    dots: Sequence[Dots] = ()
    shade: tuple[XY, str] | None = None
    """A stretch of x that is shaded, and its name."""

    x_ticks: Sequence[tuple[float, str]] = ()
    """Places and texts where the axis is not in plain numbers."""


def draw_figure(figure: Figure) -> str:
    """The picture as the text of an ``.svg`` file; a ValueError where an axis has no extent."""
    if not (figure.x[0] < figure.x[1] and figure.y[0] < figure.y[1]):
        raise ValueError(f"the axes of {figure.title!r} run over {figure.x} and {figure.y}; both need some extent.")
    frame = Frame(figure.x, figure.y, left=68, right=544, top=34, bottom=246)
    middle = (frame.top + frame.bottom) / 2
    items: list[Curve | Dots] = [*figure.curves, *figure.dots]
    height = max(_HEIGHT, _LEGEND_TOP + math.ceil(len(items) / 2) * _LEGEND_ROW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img"><title>{escape(figure.title)}</title>{_style()}<rect class="page" width="100%" height="100%"/>',
        f'<text class="title" x="{frame.left}" y="20">{escape(figure.title)}</text>',
        *_shade(frame, figure),
        *axes(frame, figure.x_label, whole=False, about=6, x_ticks=figure.x_ticks),
        f'<text class="xname" transform="translate(16 {middle:g}) rotate(-90)">{escape(figure.y_label)}</text>',
        *(_drawn(frame, item) for item in items),
        *_legend(frame, items),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _style() -> str:
    def colours(dark: int) -> str:
        ink, page, grid = (("#1c1c1c", "#ffffff", "#d8d8d8"), ("#e8e8e8", "#161616", "#3c3c3c"))[dark]
        series = "".join(
            f".c{i}{{stroke:{pair[dark]}}}.f{i}{{fill:{pair[dark]};stroke:none}}" for i, pair in enumerate(_COLOURS)
        )
        return f"text{{fill:{ink}}}.page{{fill:{page}}}.grid,.zero{{stroke:{grid}}}.shade{{fill:{ink}}}{series}"

    shared = (
        "text{font:12px system-ui,sans-serif}.title{font-weight:600;font-size:13px}.xtick,.xname"
        "{text-anchor:middle}.ytick{text-anchor:end}path{fill:none}.line{stroke-width:2}.dash{stroke-dasharray:6 4}"
        ".shade{opacity:.07}"
        ".dots{opacity:.6}"
    )
    return f"<style>{shared}{colours(0)}@media(prefers-color-scheme:dark){{{colours(1)}}}</style>"


def _shade(frame: Frame, figure: Figure) -> Iterator[str]:
    if figure.shade:
        (first, last), name = figure.shade
        left, right = frame.across(first), frame.across(last)
        size = f'width="{right - left:.1f}" height="{frame.bottom - frame.top}"'
        yield f'<rect class="shade" x="{left:.1f}" y="{frame.top}" {size}/>'
        yield f'<text class="xtick" x="{(left + right) / 2:.1f}" y="{frame.top + 14}">{escape(name)}</text>'


def _drawn(frame: Frame, item: Curve | Dots) -> str:
    """Path through the points, or a circle at each; where a curve leaves the picture the pen is lifted."""
    (left, right), (low, high) = frame.x, frame.y
    points = [(x, y if left <= x <= right and low <= y <= high else None) for x, y in item.points]
    if isinstance(item, Curve):
        return f'<path class="line {_look(item)}" d="{frame.path(points, dots=False)}"/>'
    places = [(frame.across(x), frame.down(y)) for x, y in points if y is not None]
    circles = "".join(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5"/>' for across, down in places)
    return f'<g class="dots f{item.colour % len(_COLOURS)}">{circles}</g>'


def _legend(frame: Frame, items: Sequence[Curve | Dots]) -> Iterator[str]:
    for i, item in enumerate(items):
        left, top = frame.left + (i % 2) * (frame.right - frame.left) / 2, _LEGEND_TOP + (i // 2) * _LEGEND_ROW
        if isinstance(item, Curve):
            yield f'<path class="line {_look(item)}" d="M{left:.0f} {top}h26"/>'
        else:
            yield f'<circle class="f{item.colour % len(_COLOURS)}" cx="{left + 13:.0f}" cy="{top}" r="3.5"/>'
        yield f'<text x="{left + 32:.0f}" y="{top + 4}">{escape(item.name)}</text>'


def _look(curve: Curve) -> str:
    return f"c{curve.colour % len(_COLOURS)}{' dash' if curve.dashed else ''}"
