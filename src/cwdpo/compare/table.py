"""What a grid found: means with standard errors, paired differences, the worst setting of each method, and regret.

A seed has its own rows and runs, so it is the unit that errors are computed over: a mean over seeds has the standard
error sd / sqrt(seeds), and two methods are compared by their difference within each seed, on the same rows.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple, TypeAlias

from cwdpo.compare.grid import START, Cell, Grid, cells, read_outcome
from cwdpo.config.checking import build
from cwdpo.errors import ConfigError
from cwdpo.records import write_json

Setting: TypeAlias = tuple[tuple[str, Any], ...]
Key: TypeAlias = tuple[str, str, Setting]
"""World, method and setting."""

BySeed: TypeAlias = Mapping[int, Mapping[str, float]]
"""The value of each measure, by seed."""


class Score(NamedTuple):
    """A mean over seeds with its standard error, which one seed does not have."""

    mean: float
    error: float | None
    seeds: int

    def __format__(self, sign: str) -> str:
        mean = format(round(self.mean, 3) + 0.0, f"{sign}.3f")  # no -0.000
        return mean if self.error is None else f"{mean} ± {self.error:.3f}"


class Choice(NamedTuple):
    """The setting that a method is reported at."""

    setting: Setting
    value: float
    """Its measure, by which it was chosen."""

    tuned: bool
    """Chosen on the tuning seed; else it is the best on the seeds that are reported, which flatters every method."""


class Results:
    """The runs of a grid that are done."""

    def __init__(self, grid: Grid, found: Mapping[Cell, Mapping[str, float]]) -> None:
        self.grid = grid
        self._found: dict[Key, dict[int, Mapping[str, float]]] = {}
        self._tuning: dict[Key, Mapping[str, float]] = {}
        for cell, values in found.items():
            key = (cell.world, cell.method, cell.setting)
            if cell.seed == grid.tuning_seed:
                self._tuning[key] = values
            else:
                self._found.setdefault(key, {})[cell.seed] = values
        measures = dict.fromkeys(name for values in found.values() for name in values)
        self.measures = [name for name in grid.measures or measures if name in measures]
        if measures and grid.target not in measures:
            raise ConfigError(f"target is {grid.target!r}, which is not measured. Write one of: {', '.join(measures)}.")

    @classmethod
    def read(cls, grid: Grid, out: Path) -> "Results":
        """Read what a directory of runs has."""
        found = {cell: measured.means() for cell in cells(grid) if (measured := read_outcome(cell.directory(out)))}
        return cls(grid, found)

    @classmethod
    def load(cls, file: Path) -> "Results":
        """Read what :meth:`save` wrote."""
        content = json.loads(file.read_text(encoding="utf-8"))
        found = {
            Cell(run["world"], run["seed"], run["method"], tuple(map(tuple, run["setting"]))): run["values"]
            for run in content["runs"]
        }
        return cls(build(Grid, content["grid"]), found)

    def save(self, file: Path) -> None:
        """Write the means of every run, with the grid, as one file that is small enough to be kept with a paper."""
        known = [(key, seed, values) for key, by_seed in self._found.items() for seed, values in by_seed.items()]
        if self.grid.tuning_seed is not None:
            known += [(key, self.grid.tuning_seed, values) for key, values in self._tuning.items()]
        runs = [
            {
                "world": world,
                "method": method,
                "setting": setting,
                "seed": seed,
                "values": {name: round(value, 5) for name, value in values.items()},
            }
            for (world, method, setting), seed, values in known
        ]
        grid = asdict(self.grid) | {"recipe": Path(self.grid.recipe).name}
        write_json(file, {"grid": grid, "runs": runs})

    def settings(self, world: str, method: str) -> list[Setting]:
        """The settings that a method was run with in a world, in the grid's order."""
        return [setting for w, m, setting in self._found if (w, m) == (world, method)]

    def methods(self, world: str) -> list[str]:
        """The methods with a run in a world: the start first, then in the grid's order."""
        there = {method for w, method, _ in self._found if w == world}
        return [method for method in (START, *self.grid.methods) if method in there]

    def score(self, world: str, method: str, setting: Setting, measure: str) -> Score:
        """A measure's mean over the seeds that are done."""
        return _score(values[measure] for values in self._found[world, method, setting].values())

    def has_choice(self, world: str, method: str) -> bool:
        """Whether the target differs between the settings that a method's own is chosen from."""
        return len({*self._to_choose_from(world, method, self.grid.target).values()}) > 1

    def _to_choose_from(self, world: str, method: str, by: str) -> dict[Setting, float]:
        """A measure at each setting, on the tuning seed where there is one."""
        tried = self.settings(world, method)
        found = {s: self._tuning[world, method, s][by] for s in tried if (world, method, s) in self._tuning}
        return found or {setting: self.score(world, method, setting, by).mean for setting in tried}

    def choice(self, world: str, method: str, measure: str | None = None) -> Choice:
        """The best setting by a measure, the target if none is named, on the tuning seed where there is one."""
        by = measure or self.grid.target
        found = self._to_choose_from(world, method, by)
        best = max(found, key=lambda setting: self._good(found[setting], by))
        return Choice(best, found[best], (world, method, best) in self._tuning)

    def worst(self, world: str, method: str, measure: str) -> Score:
        """A measure at the setting with which the method does worst in it."""
        scores = [self.score(world, method, setting, measure) for setting in self.settings(world, method)]
        return min(scores, key=lambda score: self._good(score.mean, measure))

    def middle(self, world: str, method: str, measure: str) -> Score:
        """A measure at the middle one of the settings, as ordered by it."""
        scores = [self.score(world, method, setting, measure) for setting in self.settings(world, method)]
        return sorted(scores, key=lambda score: self._good(score.mean, measure))[len(scores) // 2]

    def difference(self, world: str, one: tuple[str, Setting], other: tuple[str, Setting], measure: str) -> Score:
        """One method's value less another's within each seed; positive is better whatever the measure."""
        ours, theirs = self._found[world, *one], self._found[world, *other]
        both = [seed for seed in ours if seed in theirs]
        sign = self._good(1.0, measure)
        return _score(sign * (ours[seed][measure] - theirs[seed][measure]) for seed in both)

    def regret(self, world: str, method: str, setting: Setting, measure: str) -> float:
        """How much better the best method of this world and setting is, in the mean over seeds."""
        here = [m for m in self.methods(world) if m != START and (world, m, setting) in self._found]
        best = max(self._good(self.score(world, m, setting, measure).mean, measure) for m in here)
        return best - self._good(self.score(world, method, setting, measure).mean, measure)

    def worst_regret(self, method: str, measure: str, worlds: Iterable[str] | None = None) -> float:
        """The largest regret over all worlds and settings: what not knowing one's regime may cost."""
        return max(
            self.regret(world, method, setting, measure)
            for world in (self.grid.worlds if worlds is None else worlds)
            for setting in self.settings(world, method)
        )

    def _good(self, value: float, measure: str | None = None) -> float:
        return -value if (measure or self.grid.target) in self.grid.lower_is_better else value


def summary(results: Results, *, title: str) -> dict[str, Any]:
    """The comparison in the form that the report reads: a row a method, and for each world the target at the method's
    best setting and at its worst, then the largest regret."""
    grid, target = results.grid, results.grid.target
    worlds = [world for world in grid.worlds if len(results.methods(world)) > 1]
    better = "down" if target in grid.lower_is_better else "up"
    columns = [
        {"key": f"{kind} {world}", "label": f"{world}: {target}, {kind}", "better": better, "format": ".3f"}
        for world in worlds
        for kind in ("best", "worst")
    ]
    columns.append({"key": "regret", "label": "largest regret", "better": "down", "format": ".3f"})
    rows = []
    for method in grid.methods:
        there = [world for world in worlds if method in results.methods(world)]
        row: dict[str, Any] = {"name": method}
        for world in there:
            choice = results.choice(world, method)
            for kind, score in (
                ("best", results.score(world, method, choice.setting, target)),
                ("worst", results.worst(world, method, target)),
            ):
                row[f"{kind} {world}"] = score.mean
                row[f"{kind} {world} error"] = score.error
        row["regret"] = results.worst_regret(method, target, there) if there else None
        rows.append(row)
    ties = "Tied: within two standard errors of the best; where all are, none is marked."
    return {
        "title": title,
        "table": {"columns": columns, "rows": rows},
        "legend": " ".join([*_equal(results), _legend(results), ties]),
    }


def markdown(results: Results) -> str:
    """All tables as Markdown: for each world every method at its best setting, and the target at every setting; then
    the regrets."""
    grid, parts = results.grid, []
    for world in grid.worlds:
        methods = results.methods(world)
        if len(methods) < 2:
            continue
        parts += [f"### {world}", _at_best(results, world), _at_every(results, world)]
    trained = [method for method in grid.methods if all(method in results.methods(w) for w in grid.worlds)]
    if trained:
        named = [name for name in grid.measures if name in results.measures and name not in grid.lower_is_better]
        measures = list(dict.fromkeys([grid.target, *named]))
        head = ["largest regret", *measures]
        lines = [[method, *(f"{results.worst_regret(method, m):.3f}" for m in measures)] for method in trained]
        parts += ["### Largest regret over all worlds and settings", _table(head, lines)]
    return "\n\n".join([*parts, *_equal(results), _legend(results)]) + "\n"


def _at_best(results: Results, world: str) -> str:
    grid = results.grid
    baseline = grid.baseline or next(iter(grid.methods))
    rival = (baseline, results.choice(world, baseline).setting) if baseline in results.methods(world) else None
    head = ["at its best setting", "setting", *results.measures, f"{grid.target}, less {baseline}'s"]
    lines = []
    for method in results.methods(world):
        setting = results.choice(world, method).setting if method != START else ()
        scores = [f"{results.score(world, method, setting, measure)}" for measure in results.measures]
        gap = (
            None
            if method == baseline or not rival
            else results.difference(world, (method, setting), rival, grid.target)
        )
        label = Cell(world, 0, method, setting).label
        lines.append([method, label, *scores, "" if gap is None else f"{gap:+}"])
    return _table(head, lines)


def _at_every(results: Results, world: str) -> str:
    grid, target = results.grid, results.grid.target
    settings = list(dict.fromkeys(s for method in grid.methods for s in results.settings(world, method)))
    labels = [Cell(world, 0, "", setting).label for setting in settings]
    lines = []
    for method in results.methods(world)[1:]:
        known = results.settings(world, method)
        scores = [f"{results.score(world, method, s, target)}" if s in known else "" for s in settings]
        lines.append([method, *scores, f"{results.worst(world, method, target)}"])
    return _table([f"{target} at every setting", *labels, "worst"], lines)


def _equal(results: Results) -> Iterator[str]:
    """A sentence for each world in which the target shows no difference, or leaves a method nothing to choose."""
    target = results.grid.target
    for world in results.grid.worlds:
        methods = [method for method in results.methods(world) if method != START]
        found = {
            results.score(world, method, setting, target).mean
            for method in methods
            for setting in results.settings(world, method)
        }
        same = [m for m in methods if len(results.settings(world, m)) > 1 and not results.has_choice(world, m)]
        if len(found) == 1 and len(methods) + len(same) > 1:
            yield (
                f"{world}: no difference. {target} is {found.pop():.3f} for every method and setting, so that none is "
                "the best. Name another `target`, one that differs."
            )
        elif same:
            yield f"{world}: all settings of {', '.join(same)} are equal in {target}, and the first of them is shown."


def _legend(results: Results) -> str:
    grid = results.grid
    means = "Values of one seed, which have no standard errors: which differences are more than chance is not known."
    if len(grid.seeds) > 1:
        means = (
            f"Means over {len(grid.seeds)} seeds with their standard errors; each seed has its own runs, and its own "
            "data where the grid makes it."
        )
    tuned = grid.tuning_seed is not None
    chosen = f"chosen on seed {grid.tuning_seed}, which is not reported" if tuned else "the best on the reported seeds"
    return (
        f"{means} Best setting: {chosen}. Regret: how far a method's {grid.target} is below the best method's in the "
        "same world with the same setting; the largest is what not knowing one's regime may cost."
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _score(values: Iterable[float]) -> Score:
    known = list(values)
    if not known:
        return Score(math.nan, None, 0)
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else None
    return Score(fmean(known), error, len(known))
