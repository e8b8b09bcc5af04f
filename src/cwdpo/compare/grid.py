"""What is compared with what: a grid file, and the runs that follow from it."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from cwdpo.config import located_yaml
from cwdpo.config.checking import TrainerFields, Where, build, shown
from cwdpo.config.limits import STRICT, Called, not_empty
from cwdpo.config.recipe import Recipe
from cwdpo.config.recipe_file import read_recipe
from cwdpo.contents import GRID, RECIPE, kind_of, refusal
from cwdpo.errors import ConfigError, path_advice

START = "start"
"""The method that changes nothing: the model that all others start from, which is measured beside them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Grid:
    """Methods x settings x worlds x seeds. Settings are named as ``cwdpo train`` takes them: ``stage2.beta``."""

    recipe: Annotated[
        str,
        not_empty("Write the path of the recipe that all runs share."),
        Called("the path of a recipe"),
    ]
    """What all runs share; the path starts at the grid's own directory."""

    methods: dict[str, dict[str, Any]]
    """The recipe settings of each method."""

    settings: dict[str, list[Any]] = field(default_factory=dict)
    """Settings that every method is tried with, in all combinations, so that each gets the same number of runs."""

    worlds: dict[str, dict[str, Any]] = field(default_factory=lambda: {"data": {}})
    """What is trained on: recipe settings, or the arguments of ``make``."""

    make: str | None = None
    """``module:function`` that makes the data of a world and a seed, and gives the recipe settings that name it."""

    measure: str = "cwdpo.compare.held_out:measure"
    """``module:function`` that measures a model."""

    seeds: Annotated[list[int], Called("a list of whole numbers, such as [0, 1]")] = field(
        default_factory=lambda: [0, 1, 2]
    )
    """Of the runs that are reported."""

    tuning_seed: int | None = None
    """Where each method chooses among the settings; its runs are not reported. Null: no choice is made."""

    target: str = "exact_match"
    """The measure that settings are chosen by, and that regret counts."""

    lower_is_better: list[str] = field(
        default_factory=lambda: [
            "answer_ece",
            "chair_i",
            "chair_s",
            "cut",
            "token_brier",
            "token_ece",
            "yes_no_unclear",
        ]
    )
    """Measures of which less is better; of all others more is. By default those of ``cwdpo evaluate``."""

    measures: list[str] = field(default_factory=list)
    """Those that tables show, in this order; all if none is named."""

    baseline: str | None = None
    """The method that differences are to; null takes the first."""

    @model_validator(mode="after")
    def _is_whole(self) -> "Grid":
        if not self.methods or START in self.methods:
            raise ConfigError(
                f"methods must name at least one method, and none `{START}`, which is always measured.",
                setting="methods",
            )
        if self.baseline is not None and self.baseline not in {*self.methods, START}:
            raise ConfigError(
                f"baseline is {self.baseline!r}, which is none of the methods: {', '.join(self.methods)}.",
                setting="baseline",
            )
        if not self.seeds or len({*self.seeds, self.tuning_seed}) < len(self.seeds) + 1:
            why = "seeds must be different from each other and from tuning_seed, and at least one."
            raise ConfigError(why, setting="seeds")
        if any(not values for values in self.settings.values()):
            raise ConfigError("every one of `settings` needs a list of values to try.", setting="settings")
        return self


@plain_dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    world: str
    seed: int
    method: str
    setting: tuple[tuple[str, Any], ...]
    """Pairs of name and value."""

    @property
    def label(self) -> str:
        """The setting in words: ``learning_rate 0.0001``."""
        return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in self.setting)

    def directory(self, out: Path) -> Path:
        """Where the run and what was measured of it are kept."""
        parts = (self.world, f"seed-{self.seed}", self.method, self.label or "run")
        return out.joinpath("cells", *(_slug(part) for part in parts))


class Outcome(NamedTuple):
    """What was measured of one model."""

    rows: Mapping[str, Sequence[float]]
    """A value for each held-out row, the same rows for every method of a world and seed."""

    numbers: Mapping[str, float]
    """Values that are no means over rows, such as a calibration error."""

    def means(self) -> dict[str, float]:
        """One number a measure."""
        return {name: fmean(values) for name, values in self.rows.items()} | {**self.numbers}


def read_grid(path: Path, *, trainer_fields: TrainerFields | None = None) -> Grid:
    """Read a grid file, and the recipe of every run as far as it is known before the worlds are made; a ConfigError has
    one line for each mistake. ``trainer_fields`` are those of :func:`read_recipe`."""
    if not path.exists() or kind_of(path) not in ("a grid", "a YAML file", "a file"):
        raise refusal(path, GRID, ConfigError)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(f"{path}: cannot be read ({why}). Give a grid, a YAML file.") from None
    located = located_yaml.load(text, str(path))

    def where(setting: tuple[str, ...]) -> str:
        above = (setting[:length] for length in range(len(setting), 0, -1))
        return f"{path}:{next((located.lines[key] for key in above if key in located.lines), 1)}"

    _check_forms(located.values, where)
    grid = build(Grid, located.values, where)
    recipe = path.parent / grid.recipe
    if not recipe.is_file():
        raise ConfigError(
            f"{where(('recipe',))}: there is no recipe {recipe}. "
            + path_advice(recipe, otherwise="Its path starts at the grid's directory.")
        )
    if kind_of(recipe) == "a grid":
        raise ConfigError(f"{where(('recipe',))}: {refusal(recipe, RECIPE)}")
    worlds = [{}] if grid.make is not None else grid.worlds.values()
    tried = [{}, *({name: value} for name, values in grid.settings.items() for value in values)]
    for world, method, setting in product(worlds, grid.methods, tried):
        own = grid.methods[method]
        try:
            read_recipe(recipe, {**world, **own, **setting}, trainer_fields=trainer_fields, warn=False)
        except ConfigError as error:  # of other settings, which a world may still give, the runs will say it
            places = {name: ("methods", method, name) for name in own} | {name: ("settings", name) for name in setting}
            wrong = [name for name in places if str(error).startswith(f"--{name}")]
            if wrong:
                raise ConfigError(f"{where(places[max(wrong, key=len)])}: {error}") from error
    return build(Grid, located.values | {"recipe": str(recipe)}, where)


_FORMS: Mapping[str, tuple[type, str]] = {
    "methods": (dict, "a section of recipe settings. Write {value}: {{}}"),
    "settings": (list, "a list of values to try. Write [{value}]"),
    "worlds": (dict, "a section of settings. Write {value}: {{}}"),
}
"""What each item of a section must be, and what to write: of its value, or of the name that was meant."""


def _check_forms(values: Mapping[str, object], where: Where) -> None:
    """A ConfigError for the first section that is a list, or that has a value where a list or a section belongs."""
    for key, (kind, must) in _FORMS.items():
        section = values.get(key, {})
        if isinstance(section, list):
            names = must.partition(". Write ")[2].format(value=section[0] if section else "NAME")
            if key == "methods":
                names = names.replace("{}", "{stage2.cooling: null}") + "; {} alone changes nothing"
            raise ConfigError(
                f"{where((key,))}: {key} is a list, but must be a section with a line for each. Write {names}."
            )
        for name, value in section.items() if isinstance(section, Mapping) else ():
            if not isinstance(value, kind):
                example = must.format(value=name if kind is dict else shown(value))
                raise ConfigError(f"{where((key, name))}: {key}.{name} is {shown(value)}, but must be {example}.")


def cells(grid: Grid) -> Iterator[Cell]:
    """Every run, the tuning seed's first, then seed by seed, so that a grid that is cut short has whole seeds."""
    every = [*([] if grid.tuning_seed is None else [grid.tuning_seed]), *grid.seeds]
    settings = [tuple(zip(grid.settings, values, strict=True)) for values in product(*grid.settings.values())]
    for seed, world in product(every, grid.worlds):
        yield Cell(world, seed, START, ())
        for method, setting in product(grid.methods, settings):
            yield Cell(world, seed, method, setting)


def recipe_of(grid: Grid, cell: Cell, made: Mapping[str, Any], output_dir: Path) -> Recipe:
    """The recipe of a run; ``made`` are the settings that its world decides. A ConfigError names the grid's method."""
    changes = {**made, **grid.methods[cell.method], **dict(cell.setting)}
    try:
        return read_recipe(grid.recipe, {**changes, "seed": cell.seed, "output_dir": str(output_dir)})
    except ConfigError as error:
        raise ConfigError(f"method {cell.method!r}: {error}") from error


def fingerprint(grid: Grid, cell: Cell) -> str:
    """What must be the same for a run to be taken for done: all that the grid and its recipe say of it."""
    said = [
        located_yaml.load(Path(grid.recipe).read_text(encoding="utf-8"), grid.recipe).values,
        grid.worlds[cell.world],
        grid.methods.get(cell.method),
        cell.setting,
        (grid.make, grid.measure),
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_outcome(directory: Path) -> Outcome | None:
    """What was measured of a run; None if it is not done."""
    file = directory / "measured.json"
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return Outcome(found["rows"], found["numbers"])


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_") or "_"
