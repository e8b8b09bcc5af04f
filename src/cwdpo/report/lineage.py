"""Runs that begin where another run's stage ended are drawn from there, so that equal steps stand above each other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cwdpo.report.panels import stage_label
from cwdpo.report.runs import Run
from cwdpo.report.series import Segment, Series


def aligned(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Put runs that start from another's stage after it.

    A run says its start in the ``model`` of its summary. Only runs that lie beside each other are matched, by the names
    of directory and stage, so that a tree of runs can be moved.

    Returns:
        The runs, with steps counted from the first ancestor among them, and a sentence on each run that was moved.
    """
    parents = {run.path: parent for run in runs if (parent := _parent(run, runs))}
    moved, told = [], []
    for run in runs:
        begin = _begin(run, parents, len(runs))
        moved.append(_shifted(run, begin) if begin else run)
        if begin:
            origin, stage = parents[run.path]
            told.append(f"{run.name} continues {origin.name}'s {stage_label(stage)} from step {begin}.")
    return moved, told


def _parent(run: Run, runs: Sequence[Run]) -> tuple[Run, str] | None:
    model = run.summary.get("model")
    start = Path(model).parts[-2:] if isinstance(model, str) else ()
    for other in runs:
        for stage in other.stages:
            if other is not run and other.path.parent == run.path.parent and start == (other.path.name, stage):
                return other, stage
    return None


def _begin(run: Run, parents: Mapping[Path, tuple[Run, str]], most: int) -> int:
    """The step at which a run begins; ``most`` ends a circle of runs that each claim to start from the next."""
    if run.path not in parents or most == 0:
        return 0
    parent, stage = parents[run.path]
    later = [start for start in parent.stages.values() if start > parent.stages[stage]]
    return _begin(parent, parents, most - 1) + min(later, default=parent.num_steps)


def _shifted(run: Run, by: int) -> Run:
    def moved(series: Series) -> Series:
        return Series(tuple(Segment(s.stage, tuple((x + by, y) for x, y in s.points)) for s in series.segments))

    return replace(
        run,
        stages={stage: start + by for stage, start in run.stages.items()},
        num_steps=run.num_steps + by,
        metrics={key: moved(series) for key, series in run.metrics.items()},
        probes={key: moved(series) for key, series in run.probes.items()},
        histograms=[replace(h, begin=h.begin + by, end=h.end + by) for h in run.histograms],
    )
