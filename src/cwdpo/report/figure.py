"""One picture as an SVG file of its own: curves and dots over two numeric axes, for documents and run directories.

The report's charts take colours and fonts from their page; a file has no page, so it brings its own style, for light
and dark.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import escape

from cwdpo.report.axes import tick_label, ticks

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 544, 34, 246
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
    """What is drawn. Everything outside the axes' spans is left out."""

    title: str
    x_label: str
    y_label: str
    x: XY
    """First and last x of the axis."""

    y: XY
    curves: Sequence[Curve] = ()
    dots: Sequence[Dots] = ()
    shade: tuple[XY, str] | None = None
    """A stretch of x that is shaded, and its name."""

    x_ticks: Sequence[tuple[float, str]] = field(default=())
    """Places and texts where the axis is not in plain numbers."""


def draw_figure(figure: Figure) -> str:
    """The picture as the text of an ``.svg`` file.

    Raises:
        ValueError: an axis has no extent.
    """
    if not (figure.x[0] < figure.x[1] and figure.y[0] < figure.y[1]):
        raise ValueError(f"the axes of {figure.title!r} run over {figure.x} and {figure.y}; both need some extent.")
    rows = -(-len([*figure.curves, *figure.dots]) // 2)
    height = max(_HEIGHT, _LEGEND_TOP + rows * _LEGEND_ROW)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img"><title>{escape(figure.title)}</title>{_style()}<rect class="page" width="100%" height="100%"/>',
        f'<text class="title" x="{_LEFT}" y="20">{escape(figure.title)}</text>',
        *_axes(figure),
        *(_curve(figure, curve) for curve in figure.curves),
        *(_dots(figure, dots) for dots in figure.dots),
        *_legend(figure),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _style() -> str:
    def colours(dark: int) -> str:
        ink, page, grid = (("#1c1c1c", "#ffffff", "#d8d8d8"), ("#e8e8e8", "#161616", "#3c3c3c"))[dark]
        series = "".join(
            f".c{i}{{stroke:{pair[dark]}}}.f{i}{{fill:{pair[dark]};stroke:none}}" for i, pair in enumerate(_COLOURS)
        )
        return f"text{{fill:{ink}}}.page{{fill:{page}}}.grid{{stroke:{grid}}}.shade{{fill:{ink}}}{series}"

    shared = (
        "text{font:12px system-ui,sans-serif}.title{font-weight:600;font-size:13px}.x{text-anchor:middle}"
        ".y{text-anchor:end}path{fill:none}.line{stroke-width:2}.dash{stroke-dasharray:6 4}.shade{opacity:.07}"
        ".dots{opacity:.6}"
    )
    return f"<style>{shared}{colours(0)}@media(prefers-color-scheme:dark){{{colours(1)}}}</style>"


def _left(figure: Figure, x: float) -> float:
    return _LEFT + (x - figure.x[0]) / (figure.x[1] - figure.x[0]) * (_RIGHT - _LEFT)


def _top(figure: Figure, y: float) -> float:
    return _BOTTOM - (y - figure.y[0]) / (figure.y[1] - figure.y[0]) * (_BOTTOM - _TOP)


def _inside(figure: Figure, point: XY) -> bool:
    return figure.x[0] <= point[0] <= figure.x[1] and figure.y[0] <= point[1] <= figure.y[1]


def _axes(figure: Figure) -> Iterator[str]:
    if figure.shade:
        (first, last), name = figure.shade
        left, right = _left(figure, first), _left(figure, last)
        yield f'<rect class="shade" x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{_BOTTOM - _TOP}"/>'
        yield f'<text class="x" x="{(left + right) / 2:.1f}" y="{_TOP + 14}">{escape(name)}</text>'
    for value in ticks(*figure.y):
        top = _top(figure, value)
        yield f'<path class="grid" d="M{_LEFT} {top:.1f}H{_RIGHT}"/>'
        yield f'<text class="y" x="{_LEFT - 6}" y="{top + 4:.1f}">{tick_label(value)}</text>'
    for place, text in figure.x_ticks or [(value, tick_label(value)) for value in ticks(*figure.x, about=6)]:
        left = _left(figure, place)
        yield f'<path class="grid" d="M{left:.1f} {_BOTTOM}v5"/>'
        yield f'<text class="x" x="{left:.1f}" y="{_BOTTOM + 18}">{escape(text)}</text>'
    middle = (_TOP + _BOTTOM) / 2
    yield f'<text class="x" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 38}">{escape(figure.x_label)}</text>'
    yield f'<text class="x" transform="translate(16 {middle}) rotate(-90)">{escape(figure.y_label)}</text>'


def _curve(figure: Figure, curve: Curve) -> str:
    """Path through the points; where it leaves the picture the pen is lifted."""
    path, pen = [], False
    for point in curve.points:
        inside = _inside(figure, point)
        if inside:
            path.append(f"{'L' if pen else 'M'}{_left(figure, point[0]):.1f} {_top(figure, point[1]):.1f}")
        pen = inside
    return f'<path class="line {_look(curve)}" d="{"".join(path)}"/>'


def _dots(figure: Figure, dots: Dots) -> str:
    circles = "".join(
        f'<circle cx="{_left(figure, x):.1f}" cy="{_top(figure, y):.1f}" r="2.5"/>'
        for x, y in dots.points
        if _inside(figure, (x, y))
    )
    return f'<g class="dots f{dots.colour % len(_COLOURS)}">{circles}</g>'


def _legend(figure: Figure) -> Iterator[str]:
    items: list[Curve | Dots] = [*figure.curves, *figure.dots]
    for i, item in enumerate(items):
        left, top = _LEFT + (i % 2) * (_RIGHT - _LEFT) / 2, _LEGEND_TOP + (i // 2) * _LEGEND_ROW
        if isinstance(item, Curve):
            yield f'<path class="line {_look(item)}" d="M{left:.0f} {top}h26"/>'
        else:
            yield f'<circle class="f{item.colour % len(_COLOURS)}" cx="{left + 13:.0f}" cy="{top}" r="3.5"/>'
        yield f'<text x="{left + 32:.0f}" y="{top + 4}">{escape(item.name)}</text>'


def _look(curve: Curve) -> str:
    return f"c{curve.colour % len(_COLOURS)}{' dash' if curve.dashed else ''}"
