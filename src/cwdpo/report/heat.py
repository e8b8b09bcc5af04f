"""Cooling weights over time as a heat map: steps across, weights up, the share of negatives as shade."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from cwdpo.report.axes import BOTTOM, HEIGHT, TOP, WIDTH, Frame, axes
from cwdpo.report.lists import NUM_BINS, Histogram, joined_histograms
from cwdpo.report.runs import Run

SHADES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
"""Shares at which the next shade begins; there is one more shade below the first, and none at all for no negative."""

_MOST_COLUMNS = 80
_EDGE = 0.1
"""The bins of least and of most weight that the words under a map speak of."""


@dataclass(frozen=True)
class HeatMap:
    """A run's map and the words under it."""

    rank: int
    name: str
    svg: Markup
    words: str


def heat_maps(runs: Sequence[Run]) -> list[HeatMap]:
    """One map a run that counted its cooling weights, all over the same steps."""
    shown = [(rank, run) for rank, run in enumerate(runs) if run.histograms]
    if not shown:
        return []
    steps = (
        min(run.histograms[0].begin for _, run in shown),
        max(run.histograms[-1].end for _, run in shown),
    )
    return [_map(rank, run, Frame(steps, (0.0, 1.0))) for rank, run in shown]


def shade(share: float) -> int:
    """Class of a share: 0 for none at all, then up to 8.

    Example:
        >>> [shade(share) for share in (0.0, 0.001, 0.02, 0.1, 1.0)]
        [0, 1, 2, 4, 8]
    """
    return 0 if share <= 0 else 1 + sum(share >= least for least in SHADES)


def shade_labels() -> list[tuple[int, str]]:
    """Class and meaning of every shade, for the legend."""
    percent = [f"{least:.0%}" for least in SHADES]
    between = [f"{low[:-1]} to {high}" for low, high in pairwise(percent)]
    return list(enumerate([f"under {percent[0]}", *between, f"{percent[-1]} and more"], start=1))


def _map(rank: int, run: Run, frame: Frame) -> HeatMap:
    columns = joined_histograms(run.histograms, most=_MOST_COLUMNS)
    words = _words(columns[0], columns[-1])
    label = escape(f"Cooling weights of {run.name} over steps. {words}")
    svg = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">', *axes(frame)]
    svg += [*_cells(columns, frame), *_hints(columns, frame), "</svg>"]
    return HeatMap(rank, run.name, Markup("".join(svg)), words)


def _cells(columns: Sequence[Histogram], frame: Frame) -> Iterator[str]:
    """One path a shade, so that a long run's map stays small."""
    paths: dict[int, list[str]] = {}
    for column in columns:
        left, right = frame.left(column.begin), frame.left(column.end)
        for i, share in enumerate(column.shares):
            top, bottom = frame.top((i + 1) / NUM_BINS), frame.top(i / NUM_BINS)
            paths.setdefault(shade(share), []).append(f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z")
    for level, parts in sorted(paths.items()):
        if level:
            yield f'<path class="w{level}" d="{"".join(parts)}"/>'


def _hints(columns: Sequence[Histogram], frame: Frame) -> Iterator[str]:
    """What a pointer resting on a column reads: its steps and the weights that have negatives."""
    for column in columns:
        left, right = frame.left(column.begin), frame.left(column.end)
        told = [f"{i / NUM_BINS:.1f}: {share:.0%}" for i, share in enumerate(column.shares) if share >= 0.005]
        text = f"Steps {column.begin:.0f} to {column.end:.0f}, by w_c from\n" + "\n".join(reversed(told))
        box = f'x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{BOTTOM - TOP}"'
        yield f'<rect class="hint" {box}><title>{text}</title></rect>'


def _words(first: Histogram, last: Histogram) -> str:
    low, high = (f"{first.shares[i]:.0%} at first, {last.shares[i]:.0%} at last" for i in (0, -1))
    return f"w_c under {_EDGE}: {low}. Over {1 - _EDGE}: {high}."
