"""Axes: from data to a picture's units, round ticks, and short labels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cwdpo.report.series import Point

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 330, 14, 162


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
    """From data to the picture's units; what lies outside is put on the edge."""

    x: tuple[float, float]
    """First and last x of the axis."""

    y: tuple[float, float]
    bottom: float = BOTTOM
    """Where the picture's lower edge is; the others are the same in every picture."""

    def left(self, x: float) -> float:
        """Where an x lies across the picture."""
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        return LEFT + min(max(share, 0.0), 1.0) * (RIGHT - LEFT)

    def top(self, y: float) -> float:
        """Where a y lies, from the top down."""
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.bottom - min(max(share, 0.0), 1.0) * (self.bottom - TOP)

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


def axes(frame: Frame, *, whole: bool = True) -> Iterator[str]:
    """Grid lines and labelled ticks of both axes; ``whole`` keeps the ticks across to whole steps."""
    for value in ticks(*frame.y):
        top = f"{frame.top(value):.1f}"
        yield f'<path class="{"zero" if value == 0 else "grid"}" d="M{LEFT} {top}H{RIGHT}"/>'
        yield f'<text class="ytick" x="{LEFT - 5}" y="{top}" dy="4">{tick_label(value)}</text>'
    for value in ticks(*frame.x, about=5, whole=whole):
        left = f"{frame.left(value):.1f}"
        yield f'<path class="grid" d="M{left} {frame.bottom}v4"/>'
        yield f'<text class="xtick" x="{left}" y="{frame.bottom + 17}">{tick_label(value)}</text>'
